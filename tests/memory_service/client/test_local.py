from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from memory_service import InvalidRequest, LocalMemory, RowOutOfRange, TableSpec, UnknownTable
from memory_service.errors import OutOfMemory


@pytest.fixture
def memory(spec: TableSpec, packed: np.ndarray) -> LocalMemory:
    return LocalMemory({spec: packed})


def test_rows_in_the_shape_asked_for(memory: LocalMemory, packed: np.ndarray, ids: np.ndarray) -> None:
    rows = memory.lookup("engram.1", ids.reshape(5, 10, 4)).result()
    assert rows.inverse.shape == (5, 10, 4)
    assert len(rows.unique) == len(np.unique(ids))
    np.testing.assert_array_equal(rows.unique[rows.inverse], packed[ids.reshape(5, 10, 4)])


def test_loaded_from_a_snapshot(snapshot: Path, packed: np.ndarray, ids: np.ndarray) -> None:
    rows = LocalMemory.load(snapshot).lookup("engram.1", ids).result()
    np.testing.assert_array_equal(rows.unique[rows.inverse], packed[ids])


def test_the_rows_are_the_callers_to_change(memory: LocalMemory, packed: np.ndarray) -> None:
    kept = packed.copy()
    memory.lookup("engram.1", np.array([0, 1])).result().unique[:] = 0
    np.testing.assert_array_equal(packed, kept)


@pytest.mark.parametrize("shape", [(0,), (0, 4), ()])
def test_odd_shapes(memory: LocalMemory, packed: np.ndarray, shape: tuple[int, ...]) -> None:
    rows = memory.lookup("engram.1", np.full(shape, 7)).result()
    np.testing.assert_array_equal(rows.unique[rows.inverse], packed[np.full(shape, 7)])


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.uint64, np.int64])
def test_any_integer_dtype(memory: LocalMemory, packed: np.ndarray, dtype: type) -> None:
    rows = memory.lookup("engram.1", np.array([5, 3, 5], dtype)).result()
    np.testing.assert_array_equal(rows.unique[rows.inverse], packed[[5, 3, 5]])


def test_bad_requests_raise_at_once(memory: LocalMemory) -> None:
    with pytest.raises(UnknownTable, match=r"engram\.2.*engram\.1"):
        memory.lookup("engram.2", np.array([0]))
    with pytest.raises(InvalidRequest, match="float64"):
        memory.lookup("engram.1", np.array([0.5]))
    for row in (-1, 1650):
        with pytest.raises(RowOutOfRange, match=str(row)):
            memory.lookup("engram.1", np.array([3, row, 4]))
    with pytest.raises(RowOutOfRange, match=str(2**64 - 1)):
        memory.lookup("engram.1", np.array([2**64 - 1], np.uint64))


def test_a_table_of_the_wrong_shape_is_refused(spec: TableSpec, packed: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\[1650, 128\]"):
        LocalMemory({spec: packed[:-1]})


def test_stats_add_up_over_threads(memory: LocalMemory) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: memory.lookup("engram.1", np.array([1, 1, 2])).result(), range(100)))
    stats = memory.stats()
    assert (stats.lookups, stats.rows, stats.unique_rows, stats.bytes) == (100, 300, 200, 200 * 128)
    assert stats.shard_rows == {"local": 200}
    assert stats.lookup_seconds > 0


def test_closed(memory: LocalMemory) -> None:
    memory.close()
    with pytest.raises(UnknownTable):
        memory.lookup("engram.1", np.array([0]))


def test_tables_beyond_the_memory_of_the_process_are_named(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> np.ndarray:
        raise MemoryError("Unable to allocate")

    monkeypatch.setattr("memory_service.client.local.np.empty", refuse)
    with pytest.raises(OutOfMemory, match=r"table 'engram\.1' has 0\.0 GiB, .*: serve it from shards"):
        LocalMemory.load(snapshot)
