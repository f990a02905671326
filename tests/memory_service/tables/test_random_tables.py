from __future__ import annotations

import numpy as np
import pytest

from memory_service import RowFormat, unpack_rows
from memory_service.tables.random_tables import random_block, random_blocks


@pytest.mark.parametrize("row_format", RowFormat)
@pytest.mark.parametrize("dim", [32, 96])
def test_values_are_finite_varied_and_small(make_spec, row_format, dim):
    spec = make_spec(row_format=row_format, dim=dim)
    values = unpack_rows(np.concatenate(list(random_blocks(spec))), row_format, dim)
    assert values.shape == (spec.rows, dim)
    assert np.isfinite(values).all()
    assert 1 < np.abs(values).max() < 2
    assert abs(values.mean()) < 0.02
    assert (values.std(axis=0) > 0.05).all(), "every column varies"
    assert len(np.unique(values, axis=0)) == spec.rows


@pytest.mark.parametrize("row_format", RowFormat)
def test_a_block_can_be_made_again_by_itself(make_spec, row_format):
    spec = make_spec(row_format=row_format)
    for block, rows in enumerate(random_blocks(spec, seed=3)):
        assert np.array_equal(random_block(spec, block, seed=3), rows)


def test_other_seeds_layers_and_blocks_give_other_rows(make_spec):
    spec = make_spec()
    blocks = [
        random_block(spec, 0),
        random_block(spec, 1),
        random_block(spec, 0, 1),
        random_block(make_spec(layer=2), 0),
    ]
    assert len({block.tobytes() for block in blocks}) == 4


def test_a_negative_seed_is_refused_by_name(make_spec):
    with pytest.raises(ValueError, match="seed=-1 is not possible"):
        random_block(make_spec(), 0, -1)
