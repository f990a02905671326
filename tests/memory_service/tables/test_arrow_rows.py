"""Batches whose lengths do not fit their bytes are refused before anything is read."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from memory_service import InvalidRequest
from memory_service.tables.arrow_rows import check_id_schema, view_ids, view_rows

COUNT = 12_345
FALSE_COUNTS = [COUNT + 64, 1 << 31, 1 << 40, (1 << 63) - 1]


def with_length(column: pa.Array, count: int) -> pa.RecordBatch:
    """What arrives of a batch that claims another number of rows than it has."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema([("row", column.type)])) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([column], ["row"]))
    message = sink.getvalue().to_pybytes().replace(COUNT.to_bytes(8, "little"), count.to_bytes(8, "little"))
    return pa.ipc.open_stream(message).read_next_batch()


@pytest.mark.parametrize("count", FALSE_COUNTS)
def test_a_batch_with_fewer_ids_than_claimed_is_refused(count: int) -> None:
    with pytest.raises(InvalidRequest, match="malformed"):
        view_ids(with_length(pa.array(np.zeros(COUNT, np.int64)), count))


@pytest.mark.parametrize("count", FALSE_COUNTS)
def test_nulls_are_not_counted_in_a_bitmap_that_is_too_short(count: int) -> None:
    with pytest.raises(InvalidRequest, match=r"malformed"):
        view_ids(with_length(pa.array([None] * COUNT, pa.int64()), count))


@pytest.mark.parametrize("count", FALSE_COUNTS)
def test_a_batch_with_fewer_rows_than_claimed_is_refused(count: int) -> None:
    with pytest.raises(InvalidRequest, match="malformed"):
        view_rows(with_length(pa.array([bytes(8)] * COUNT, pa.binary(8)), count), 8)


def test_a_batch_that_says_the_truth_is_viewed() -> None:
    ids = np.arange(COUNT)
    np.testing.assert_array_equal(view_ids(with_length(pa.array(ids), COUNT)), ids)


def test_a_schema_is_one_column_of_ids() -> None:
    check_id_schema(pa.schema([("row", pa.int64())]))
    misnamed = pa.schema([("row", pa.int64())]).serialize().to_pybytes().replace(b"row", b"\xf7ow")
    for schema, message in [
        (pa.schema([("id", pa.int64())]), "one column, 'row', of int64"),
        (pa.schema([]), "one column, 'row', of int64"),
        (pa.ipc.read_schema(pa.py_buffer(misnamed)), "no text"),
    ]:
        with pytest.raises(InvalidRequest, match=message):
            check_id_schema(schema)
