"""Rows read from the memory of a shard on this machine."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest

from memory_service import TableSpec
from memory_service.client.mapped_table import MappedTable
from memory_service.protocol.shared_table import SharedTable
from memory_service.shard.table import ShardTable

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no memfd on this system")


@pytest.fixture
def table(spec: TableSpec, packed: np.ndarray) -> ShardTable:
    table = ShardTable(spec, version=3, shared=True)
    table.add(blocks_of(packed, range(0, spec.blocks, 2)))
    return table


def blocks_of(packed: np.ndarray, blocks) -> list[tuple[int, np.ndarray]]:
    return [(block, packed[block * 64 : (block + 1) * 64]) for block in blocks]


def opened(table: ShardTable) -> MappedTable:
    assert table.shared is not None
    mapped = MappedTable.open(table.spec, table.shared)
    assert mapped is not None
    return mapped


def test_rows_and_version_are_the_shards(table: ShardTable, packed: np.ndarray) -> None:
    ids = np.array([0, 5, 63, 130, 1599])
    rows, version = opened(table).read(ids)
    np.testing.assert_array_equal(rows, packed[ids])
    assert version == 3


def test_blocks_that_come_and_go_are_seen(table: ShardTable, packed: np.ndarray) -> None:
    mapped = opened(table)
    assert mapped.read(np.array([64])) is None
    table.add(blocks_of(packed, [1]))
    np.testing.assert_array_equal(mapped.read(np.array([64]))[0], packed[[64]])
    table.drop(np.array([0]))
    assert mapped.read(np.array([0])) is None
    table.version = 4
    assert mapped.read(np.array([64]))[1] == 4


def test_never_a_wrong_row_while_blocks_move_through_the_slots(
    spec: TableSpec, table: ShardTable, packed: np.ndarray
) -> None:
    mapped, stop, wrong, seen = opened(table), threading.Event(), [], [0]

    def read() -> None:
        rng = np.random.default_rng(0)
        while not stop.is_set():
            ids = np.sort(rng.integers(0, 128, 200))
            found = mapped.read(ids)
            if found is not None:
                seen[0] += 1
                wrong.extend([] if (found[0] == packed[ids]).all() else [ids])

    thread = threading.Thread(target=read)
    thread.start()
    table.add(blocks_of(packed, [1]))
    rounds = 0
    while rounds < 100 or seen[0] < 20:  # the first two blocks change places, and slots, all the time
        rounds += 1
        table.drop(np.array([0, 1]))
        table.add(blocks_of(packed, [1, 0]))
        table.drop(np.array([1]))
        table.add(blocks_of(packed, [1]))
        time.sleep(0.001)  # now and then both hold still
    stop.set()
    thread.join()
    assert not wrong
    assert seen[0]


def test_nothing_is_read_while_a_change_is_under_way(table: ShardTable) -> None:
    mapped = opened(table)
    with table._layout.changing():
        assert mapped.read(np.array([0])) is None
    assert mapped.read(np.array([0])) is not None


@pytest.mark.parametrize(
    "change", [{"machine": "another"}, {"pid": 2**22 - 1}, {"arena_inode": 1}, {"layout_fd": 9999}]
)
def test_what_cannot_be_mapped_is_left_to_the_network(table: ShardTable, change: dict[str, object]) -> None:
    assert MappedTable.open(table.spec, SharedTable(**{**vars(table.shared), **change})) is None


def test_a_client_maps_the_shards_of_its_machine(processes, spec: TableSpec, packed: np.ndarray) -> None:
    started = processes(2, share_memory=True)
    client = started.connect(map_local=True)
    rows = client.lookup("engram.1", np.arange(spec.rows)).result()
    np.testing.assert_array_equal(rows.unique[rows.inverse], packed)
    assert client._dispatcher._streams == {}
    os.kill(started.pids[1], signal.SIGKILL)
    started.running[1].wait()
    assert client.lookup("engram.1", np.arange(spec.rows)).exception() is not None  # not the memory of the dead
