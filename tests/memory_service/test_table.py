import numpy as np
import pytest

from memory_service import RowOutOfRange, TableSpec
from memory_service.arena import Arena
from memory_service.table import ShardTable


def gather(table: ShardTable, rows: np.ndarray) -> np.ndarray:
    out = np.full((len(rows), table.spec.row_bytes), 0xAA, np.uint8)
    table.gather(table.locate(rows), out)
    return out


@pytest.fixture
def table(spec: TableSpec, packed: np.ndarray) -> ShardTable:
    table = ShardTable(spec, [25, 3, 8, 4])
    for block in table.blocks.tolist():
        table.block(block)[:] = packed[block * 64 : block * 64 + spec.block_length(block)]
    return table


def test_gathers_rows_of_scattered_blocks(table: ShardTable, packed: np.ndarray) -> None:
    rows = np.array([3 * 64, 25 * 64 + 49, 4 * 64 + 63, 8 * 64, 3 * 64, 5 * 64 - 1])
    np.testing.assert_array_equal(gather(table, rows), packed[rows])


def test_every_held_row(table: ShardTable, packed: np.ndarray, spec: TableSpec) -> None:
    rows = np.flatnonzero(np.isin(np.arange(spec.rows) >> 6, [3, 4, 8, 25]))
    np.testing.assert_array_equal(gather(table, rows), packed[rows])


def test_no_rows(table: ShardTable) -> None:
    assert gather(table, np.empty(0, np.int64)).shape == (0, 128)


@pytest.mark.parametrize("row", [-1, 1650, 1 << 62, -(1 << 63)])
def test_a_row_the_table_does_not_have_names_table_row_and_limit(table: ShardTable, row: int) -> None:
    with pytest.raises(RowOutOfRange, match=rf"engram\.1.*1649.*{row}"):
        table.locate(np.array([200, row]))


@pytest.mark.parametrize("row", [0, 2 * 64 + 63, 5 * 64, 24 * 64 + 5])
def test_a_row_of_another_shard_names_its_block(table: ShardTable, row: int) -> None:
    with pytest.raises(RowOutOfRange, match=f"row {row} lies in block {row // 64}, which this shard does not hold"):
        table.locate(np.array([3 * 64, row]))


def test_blocks_must_exist(spec: TableSpec) -> None:
    with pytest.raises(ValueError, match="0 to 25"):
        ShardTable(spec, [26])


def test_a_shard_may_hold_nothing(spec: TableSpec) -> None:
    table = ShardTable(spec, [])
    assert table.nbytes == 0
    with pytest.raises(RowOutOfRange, match="does not hold"):
        table.locate(np.array([0]))


def test_arena_slots_are_zeroed_and_apart() -> None:
    arena = Arena(3, 16, 100)
    assert not arena.rows.any()
    arena.slot(1)[:] = 7
    assert not arena.slot(0).any()
    assert not arena.slot(2).any()
    assert arena.rows[16:32].min() == 7
