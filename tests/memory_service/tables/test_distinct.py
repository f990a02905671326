from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_service import InvalidRequest, RowOutOfRange, TableSpec
from memory_service.tables.distinct import DistinctRows
from tests.memory_service.conftest import spec_of

HUGE = spec_of(column_rows=(1 << 45, 3, 3, 3))


@settings(deadline=None)
@given(st.lists(st.integers(0, 1649), max_size=300), st.sampled_from([np.int64, np.int32, np.uint16, np.uint64]))
def test_distinct_rows_agree_with_numpy_unique(ids: list[int], dtype: type) -> None:
    asked = np.array(ids, dtype)
    distinct = DistinctRows(spec_of(), asked)
    expected, inverse = np.unique(asked, return_inverse=True)
    np.testing.assert_array_equal(distinct.ids, expected)
    np.testing.assert_array_equal(distinct.inverse(), inverse)
    assert distinct.ids.dtype == distinct.inverse().dtype == np.int64
    assert distinct.size == len(ids)


def test_ids_too_large_to_share_a_word_with_their_place() -> None:
    ids = np.random.default_rng(0).integers(0, 1 << 45, 1 << 18)
    ids[::3] = ids[0]
    distinct = DistinctRows(HUGE, ids)
    np.testing.assert_array_equal(distinct.ids[distinct.inverse()], ids)
    assert len(distinct.ids) == len(np.unique(ids))


@pytest.mark.parametrize("shape", [(0,), (3, 0), (), (2, 3, 4)])
def test_the_inverse_has_the_shape_asked_for(spec: TableSpec, shape: tuple[int, ...]) -> None:
    distinct = DistinctRows(spec, np.full(shape, 7))
    assert distinct.inverse().shape == shape
    assert distinct.ids.tolist() == ([7] if distinct.size else [])


@pytest.mark.parametrize(("ids", "row"), [([5, -1], -1), ([1650], 1650), (np.array([2**64 - 1], np.uint64), 2**64 - 1)])
def test_what_is_no_row_of_the_table(spec: TableSpec, ids: object, row: int) -> None:
    with pytest.raises(RowOutOfRange, match=f"rows 0 to 1649, requested row {row}$"):
        DistinctRows(spec, np.asarray(ids))


def test_row_ids_that_are_not_integers_are_refused(spec: TableSpec) -> None:
    with pytest.raises(InvalidRequest, match="float64"):
        DistinctRows(spec, np.array([1.0]))
