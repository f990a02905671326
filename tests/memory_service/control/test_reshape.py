"""Blocks move between shards that serve: what clients see, what moves, and what happens when something breaks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

import memory_service.shard.block_copy as block_copy
from memory_service import (
    MemoryClient,
    MemoryServiceError,
    Placement,
    ShardAddress,
    ShardUnavailable,
    SnapshotError,
    TableSpec,
    write_snapshot,
)
from memory_service.control.reshape import Reshaped, reshape, retire
from memory_service.server.server import ShardServer
from memory_service.shard.shard import Shard


class Elastic:
    """A cluster whose placement follows the set of shards."""

    def __init__(self, cluster, spec: TableSpec) -> None:
        self._cluster = cluster
        self.spec = spec
        self.servers: dict[str, ShardServer] = {}
        self.placement: Placement | None = None

    def addresses(self, shards: int) -> list[ShardAddress]:
        for index in range(shards):
            if f"shard-{index}" not in self.servers:
                self.restart(f"shard-{index}")
        return [ShardAddress(f"shard-{i}", self.servers[f"shard-{i}"].address) for i in range(shards)]

    def restart(self, name: str) -> ShardServer:
        """Start a shard that holds nothing, in the place of one of that name if there is one."""
        if name in self.servers:
            self.servers[name].stop(0.5)
        self.servers[name] = self._cluster.add(ShardServer(Shard(name)).start())
        return self.servers[name]

    def target(self, shards: int, replicas: int = 1) -> Placement:
        addresses = self.addresses(shards)
        if self.placement is None:
            return Placement.build(1, addresses, [self.spec], replicas)
        return self.placement.evolve(self.placement.epoch + 1, addresses, replicas)

    def scale(self, shards: int, replicas: int = 1, uri: object = None) -> Reshaped:
        target = self.target(shards, replicas)
        if self.placement is None:
            uri = self._cluster.snapshot
        report = reshape(self.placement, target, uri)  # type: ignore[arg-type]
        self.placement = target
        return report

    def held(self) -> dict[str, list[int]]:
        return {name: server.shard.tables[self.spec.name].blocks.tolist() for name, server in self.servers.items()}


@pytest.fixture
def elastic(cluster, spec: TableSpec) -> Elastic:
    return Elastic(cluster, spec)


@pytest.fixture
def watch(cluster, spec: TableSpec, packed: np.ndarray, stack) -> Callable[[Elastic], Callable[[], int]]:
    """Start clients that verify random rows all the time; ending them returns how many lookups they made."""

    def start(elastic: Elastic) -> Callable[[], int]:
        over, wrong, counts = threading.Event(), [], [0, 0]

        def ask(which: int) -> None:
            random = np.random.default_rng(which)
            client = MemoryClient.connect(elastic.servers["shard-0"].address)
            try:
                while not over.is_set():
                    rows = random.integers(0, spec.rows, 200)
                    found = client.lookup(spec.name, rows, timeout_s=30).result()
                    np.testing.assert_array_equal(found.unique[found.inverse], packed[rows])
                    counts[which] += 1
            except BaseException as error:
                wrong.append(error)
            finally:
                client.close()

        threads = [threading.Thread(target=ask, args=(which,)) for which in range(2)]
        for thread in threads:
            thread.start()

        def end() -> int:
            over.set()
            for thread in threads:
                thread.join()
            if wrong:
                raise wrong[0]
            return min(counts)

        def more() -> None:
            """Wait until both have asked a few times more."""
            seen = [count + 5 for count in counts]
            while not wrong and any(count < least for count, least in zip(counts, seen, strict=True)):
                over.wait(0.005)

        end.more = more  # type: ignore[attr-defined]
        return end

    return start


@pytest.mark.parametrize("replicas", [1, 2])
def test_clients_notice_nothing_while_shards_come_and_go(
    elastic: Elastic, watch, spec: TableSpec, replicas: int
) -> None:
    elastic.scale(2, replicas)
    end = watch(elastic)
    end.more()
    for before, shards in ((2, 5), (5, 3)):
        report = elastic.scale(shards, replicas)
        ideal = spec.blocks * replicas * abs(shards - before) / max(shards, before)
        assert report.moved <= 1.2 * ideal
        assert (report.prepared.copied, report.prepared.loaded) == (report.moved, 0)
        assert report.prepared.kept == spec.blocks * replicas - report.moved
        end.more()
        retire(elastic.placement)
        end.more()
    for name in ("shard-3", "shard-4"):
        elastic.servers[name].stop(0.5)
    end.more()
    assert end() > 0


def test_retired_blocks_give_their_memory_back(elastic: Elastic, spec: TableSpec) -> None:
    elastic.scale(1)
    table = elastic.servers["shard-0"].shard.tables[spec.name]
    whole = table.nbytes
    elastic.scale(4)
    assert table.nbytes == whole
    retire(elastic.placement)
    kept = elastic.placement.blocks_of(spec.name, "shard-0")
    assert table.blocks.tolist() == kept.tolist()
    assert table.nbytes == len(kept) * spec.block_rows * spec.row_bytes < whole / 2


def test_old_and_new_epoch_are_answered_until_the_old_one_retires(elastic: Elastic, spec: TableSpec) -> None:
    elastic.scale(1)
    shard = elastic.servers["shard-0"].shard
    row = elastic.target(2).blocks_of(spec.name, "shard-0")[:1] * spec.block_rows
    shard.prepare(elastic.target(2), elastic.placement)
    for epoch in (1, 2):
        assert shard.lookup(spec.name, row, epoch, spec.fingerprint)[1] == epoch
    elastic.scale(2)
    for epoch in (1, 2):
        assert shard.lookup(spec.name, row, epoch, spec.fingerprint)[1] == 2
    retire(elastic.placement)
    with pytest.raises(MemoryServiceError, match="serves epoch 2, asked under epoch 1"):
        shard.lookup(spec.name, row, 1, spec.fingerprint)


def test_a_lost_shard_is_filled_from_the_other_replicas(elastic: Elastic, watch, spec: TableSpec) -> None:
    elastic.scale(3, replicas=2)
    before = elastic.held()
    end = watch(elastic)
    end.more()
    elastic.restart("shard-2")
    report = elastic.scale(3, replicas=2)
    assert (report.moved, report.prepared.copied) == (0, len(before["shard-2"]))
    assert elastic.held() == before
    retire(elastic.placement)
    end.more()
    end()


def test_what_no_shard_has_comes_from_the_snapshot(elastic: Elastic, cluster, spec: TableSpec) -> None:
    elastic.scale(3)
    before = elastic.held()
    elastic.restart("shard-1")
    with pytest.raises(ShardUnavailable, match=r"shard-1 at .*engram\.1.*block \d+.*give the URI of one") as caught:
        elastic.scale(3)
    assert caught.value.shard == "shard-1"
    report = elastic.scale(3, uri=cluster.snapshot)
    assert report.prepared.loaded == len(before["shard-1"])
    assert elastic.held() == before


@pytest.mark.usefixtures("in_python")
def test_a_damaged_copy_is_refused_and_the_next_source_asked(
    elastic: Elastic, cluster, spec: TableSpec, packed: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    elastic.scale(2)
    give = block_copy.give_blocks

    def flip(table, blocks) -> Iterator[bytes]:
        for message in give(table, blocks):
            yield message[:-1] + bytes((message[-1] ^ 1,))  # of the last byte of the last row

    monkeypatch.setattr("memory_service.server.rows_door.give_blocks", flip)
    with pytest.raises(ShardUnavailable, match="checksum does not match"):
        elastic.scale(4)
    report = elastic.scale(4, uri=cluster.snapshot)
    assert (report.prepared.copied, report.prepared.loaded) == (0, report.moved)
    found = cluster.connect().lookup(spec.name, np.arange(spec.rows)).result()
    np.testing.assert_array_equal(found.unique[found.inverse], packed)


@pytest.mark.parametrize("chunk_bytes", [128, 1000, 1 << 20])
def test_blocks_are_copied_in_chunks(
    elastic: Elastic, cluster, spec: TableSpec, packed: np.ndarray, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr("memory_service.protocol.row_messages.CHUNK_BYTES", chunk_bytes)
    elastic.scale(1)
    report = elastic.scale(3)
    assert (report.prepared.copied, report.prepared.loaded) == (report.moved, 0)
    found = cluster.connect().lookup(spec.name, np.arange(spec.rows)).result()
    np.testing.assert_array_equal(found.unique[found.inverse], packed)


def test_a_snapshot_of_another_version_is_refused(
    elastic: Elastic, spec: TableSpec, packed: np.ndarray, tmp_path
) -> None:
    elastic.scale(2)
    write_snapshot(tmp_path / "newer", {spec: packed}, version=9)
    elastic.restart("shard-1")
    with pytest.raises(SnapshotError, match=r"newer.*engram\.1.*version 9, not 0"):
        elastic.scale(2, uri=tmp_path / "newer")


@pytest.mark.usefixtures("in_python")
def test_an_interrupted_preparation_goes_on_where_it_was(
    elastic: Elastic, watch, spec: TableSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    elastic.scale(1)
    end = watch(elastic)
    give = block_copy.give_blocks

    def cut(table, blocks) -> Iterator[bytes]:
        yield from give(table, blocks[:2])
        raise OSError("cut")

    with monkeypatch.context() as patch:
        patch.setattr("memory_service.server.rows_door.give_blocks", cut)
        with pytest.raises(ShardUnavailable, match="shard-1"):
            elastic.scale(2)
    end.more()
    report = elastic.scale(2)
    assert report.prepared.copied == report.moved - 2
    retire(elastic.placement)
    end.more()
    end()


def test_another_placement_takes_the_place_of_one_that_was_only_prepared(elastic: Elastic, spec: TableSpec) -> None:
    elastic.scale(2)
    shard = elastic.servers["shard-0"].shard
    before = shard.tables[spec.name].blocks.tolist()
    shard.prepare(elastic.target(1), elastic.placement)
    assert len(shard.tables[spec.name].blocks) == spec.blocks
    shard.prepare(replace(elastic.placement, epoch=3), elastic.placement)
    assert shard.tables[spec.name].blocks.tolist() == before
    with pytest.raises(MemoryServiceError, match="asked under epoch 2"):
        shard.lookup(spec.name, np.array([0]), 2, spec.fingerprint)


@pytest.mark.usefixtures("in_python")
def test_a_preparation_ends_when_another_one_begins(
    elastic: Elastic, spec: TableSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    elastic.scale(2)
    shard = elastic.servers["shard-0"].shard
    before = shard.tables[spec.name].blocks.tolist()
    give, waiting, go_on = block_copy.give_blocks, threading.Event(), threading.Event()

    def slow(table, blocks) -> Iterator[bytes]:
        for item in give(table, blocks):
            yield item
            waiting.set()
            go_on.wait()

    monkeypatch.setattr("memory_service.server.rows_door.give_blocks", slow)
    failure: list[Exception] = []

    def prepare() -> None:
        try:
            shard.prepare(elastic.target(1), elastic.placement)
        except MemoryServiceError as error:
            failure.append(error)

    first = threading.Thread(target=prepare)
    first.start()
    waiting.wait()
    second = threading.Thread(target=shard.prepare, args=(replace(elastic.placement, epoch=3),))
    second.start()
    while shard._intended is None or shard._intended.epoch != 3:
        second.join(0.005)
    go_on.set()
    first.join()
    second.join()
    assert "given another placement while it prepared epoch 2" in str(failure[0])
    assert shard.tables[spec.name].blocks.tolist() == before


def test_a_failed_activation_is_mended_by_a_higher_epoch(
    elastic: Elastic, watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    elastic.scale(2)
    end = watch(elastic)
    elastic.addresses(3)
    broken = elastic.servers["shard-1"].shard
    with monkeypatch.context() as patch:
        patch.setattr(broken, "activate", lambda placement: 1 / 0)
        with pytest.raises(MemoryServiceError, match=r"shard-1 at .*Activate failed"):
            elastic.scale(3)
    end.more()
    target = replace(elastic.target(3), epoch=3)
    reshape(elastic.placement, target)
    retire(target)
    end.more()
    end()


def test_shards_that_leave_tell_of_the_new_placement(elastic: Elastic, cluster, spec: TableSpec) -> None:
    elastic.scale(2)
    elastic.scale(1)
    leaving = elastic.servers["shard-1"].shard
    assert leaving.placement.epoch == 2
    row = leaving.tables[spec.name].blocks[:1] * spec.block_rows
    assert leaving.lookup(spec.name, row, 1, spec.fingerprint)[1] == 2
