from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from memory_service import RowOutOfRange, TableSpec
from memory_service.shard.table import ShardTable


def gather(table: ShardTable, rows: np.ndarray) -> np.ndarray:
    out = np.full((len(rows), table.spec.row_bytes), 0xAA, np.uint8)
    table.gather(table.locate(rows), out)
    return out


def block_of(packed: np.ndarray, block: int) -> np.ndarray:
    return packed[block * 64 : block * 64 + 64]


@pytest.fixture
def table(spec: TableSpec, packed: np.ndarray) -> ShardTable:
    table = ShardTable(spec)
    table.add((block, block_of(packed, block)) for block in (25, 3, 8, 4))
    return table


def test_a_gather_finds_rows_of_scattered_blocks(table: ShardTable, packed: np.ndarray) -> None:
    rows = np.array([3 * 64, 25 * 64 + 49, 4 * 64 + 63, 8 * 64, 3 * 64, 5 * 64 - 1])
    np.testing.assert_array_equal(gather(table, rows), packed[rows])


def test_every_row_of_a_held_block_is_found(table: ShardTable, packed: np.ndarray, spec: TableSpec) -> None:
    rows = np.flatnonzero(np.isin(np.arange(spec.rows) >> 6, [3, 4, 8, 25]))
    np.testing.assert_array_equal(gather(table, rows), packed[rows])


@pytest.mark.parametrize("block", [0, 26, 27, (1 << 32) - 1])
def test_a_block_that_is_not_held_or_beyond_the_table_is_not_copied(table: ShardTable, block: int) -> None:
    with pytest.raises(RowOutOfRange, match=r"engram\.1"):
        table.copy_block(block)


def test_a_gather_of_no_rows_is_empty(table: ShardTable) -> None:
    assert gather(table, np.empty(0, np.int64)).shape == (0, 128)


@pytest.mark.parametrize("row", [-1, 1650, 1 << 62, -(1 << 63)])
def test_a_row_the_table_does_not_have_names_table_row_and_limit(table: ShardTable, row: int) -> None:
    with pytest.raises(RowOutOfRange, match=rf"engram\.1.*1649.*{row}"):
        table.locate(np.array([200, row]))


@pytest.mark.parametrize("row", [0, 2 * 64 + 63, 5 * 64, 24 * 64 + 5])
def test_a_row_of_another_shard_names_its_block(table: ShardTable, row: int) -> None:
    with pytest.raises(RowOutOfRange, match=f"row {row} lies in block {row // 64}, which this shard does not hold"):
        table.locate(np.array([3 * 64, row]))


def test_a_table_without_any_block_refuses_rows(spec: TableSpec) -> None:
    table = ShardTable(spec)
    assert table.nbytes == 0
    with pytest.raises(RowOutOfRange, match="does not hold"):
        table.locate(np.array([0]))


def test_blocks_are_added_dropped_and_added_again(table: ShardTable, packed: np.ndarray, spec: TableSpec) -> None:
    size = table.nbytes
    table.drop(np.array([3, 25]))
    assert table.blocks.tolist() == [4, 8]
    assert table.nbytes == size // 2
    with pytest.raises(RowOutOfRange, match="does not hold"):
        table.locate(np.array([3 * 64]))
    table.add((block, block_of(packed, block)) for block in (0, 25, 3))
    rows = np.flatnonzero(np.isin(np.arange(spec.rows) >> 6, [0, 3, 4, 8, 25]))
    np.testing.assert_array_equal(gather(table, rows), packed[rows])
    np.testing.assert_array_equal(table.copy_block(25), packed[25 * 64 :])


def test_blocks_drawn_before_a_failure_are_held(spec: TableSpec, packed: np.ndarray) -> None:
    def failing() -> Iterator[tuple[int, np.ndarray]]:
        yield 7, block_of(packed, 7)
        raise OSError("cut")

    table = ShardTable(spec)
    with pytest.raises(OSError, match="cut"):
        table.add(failing())
    np.testing.assert_array_equal(table.copy_block(7), block_of(packed, 7))


def test_a_dropped_block_keeps_its_slot_until_its_readers_leave(table: ShardTable, packed: np.ndarray) -> None:
    rows = np.array([8 * 64 + 5])
    out = np.empty((1, table.spec.row_bytes), np.uint8)
    with table.reading():
        local = table.locate(rows)
        dropping = threading.Thread(target=table.drop, args=(np.array([8]),))
        dropping.start()
        dropping.join(0.05)
        assert dropping.is_alive()
        table.gather(local, out)
    np.testing.assert_array_equal(out, packed[rows])
    dropping.join()
    assert not table.holds(np.array([8]))
