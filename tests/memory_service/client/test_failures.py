"""Shards that are away, hung, restarted or of another mind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memory_service import (
    DeadlineExceeded,
    FingerprintMismatch,
    MemoryClient,
    Placement,
    RequestTooLarge,
    ShardAddress,
    ShardUnavailable,
    TableSpec,
    WrongEpoch,
    write_snapshot,
)
from memory_service.server.server import ShardServer
from memory_service.shard.shard import Shard, ShardConfig
from memory_service.shard.table import ShardTable


@pytest.fixture
def silent_address() -> Iterator[str]:
    """A port that takes connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def free_address() -> str:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)  # the signal takes effect in its own time


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    stop(pid)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def rows_of(server: ShardServer, spec: TableSpec) -> np.ndarray:
    assert server.shard.placement is not None
    return server.shard.placement.blocks_of(spec.name, server.shard.name) * spec.block_rows


def eventually(ask) -> None:
    """Shards come back in their own time; the test's time limit is the only limit."""
    while True:
        try:
            return ask()
        except ShardUnavailable:
            time.sleep(0.02)


def test_joining_where_nobody_listens(free_address: str) -> None:
    with pytest.raises(ShardUnavailable, match=f"{free_address} cannot be reached"):
        MemoryClient.connect(free_address)


def test_joining_where_nobody_answers(silent_address: str) -> None:
    with pytest.raises(ShardUnavailable, match=f"{silent_address} (did not answer within|cannot be reached)"):
        MemoryClient.connect(silent_address, timeout_s=0.3)


def test_joining_names_the_shard_that_is_away(cluster, spec: TableSpec, free_address: str) -> None:
    cluster.start(1)
    (here,) = cluster.activate(1).shards
    placement = Placement.build(2, [here, ShardAddress("shard-1", free_address)], [spec])
    cluster.servers[0].shard.activate(placement)
    with pytest.raises(ShardUnavailable, match=f"shard-1 at {free_address}") as caught:
        cluster.connect()
    assert caught.value.shard == "shard-1"


def test_joining_a_shard_that_serves_nothing_yet(stack) -> None:
    with ShardServer(Shard("shard-0")) as server, pytest.raises(ShardUnavailable, match="no active placement"):
        MemoryClient.connect(server.address)


def test_joining_shards_that_hold_different_tables(
    cluster, tmp_path: Path, spec: TableSpec, packed: np.ndarray, make_spec
) -> None:
    other = make_spec(token_map_sha256="cd" * 32)
    write_snapshot(tmp_path / "other", {other: packed})
    servers = [cluster.add(ShardServer(Shard(name)).start()) for name in ("shard-0", "shard-1")]
    placement = Placement.build(1, [ShardAddress(server.shard.name, server.address) for server in servers], [spec])
    for server, uri in zip(servers, (cluster.snapshot, tmp_path / "other"), strict=True):
        server.shard.prepare(placement, snapshot_uri=uri)
        server.shard.activate(placement)
    with pytest.raises(FingerprintMismatch, match=r"engram\.1.*shard-1.*token_map_sha256"):
        cluster.connect()


def test_a_dead_shard_is_named_and_the_others_serve_on(cluster, spec: TableSpec, packed: np.ndarray) -> None:
    client = cluster.start(3).connect()
    client.lookup("engram.1", np.arange(spec.rows)).result()
    alive, dead = rows_of(cluster.servers[0], spec), rows_of(cluster.servers[2], spec)
    cluster.servers[2].stop()
    for _ in range(3):
        with pytest.raises(ShardUnavailable, match=rf"shard-2 at {cluster.servers[2].address}.*engram\.1") as caught:
            client.lookup("engram.1", dead, timeout_s=30).result()
        assert (caught.value.table, caught.value.shard, caught.value.epoch) == ("engram.1", "shard-2", 1)
        np.testing.assert_array_equal(client.lookup("engram.1", alive).result().unique, packed[alive])
    assert client.stats().failed == 3


def test_a_shard_that_comes_back_on_its_port_is_asked_again(cluster, spec: TableSpec, packed: np.ndarray) -> None:
    client = cluster.start(2).connect()
    rows = rows_of(cluster.servers[1], spec)
    client.lookup("engram.1", rows).result()
    old = cluster.servers[1]
    placement, port = old.shard.placement, int(old.address.rpartition(":")[2])
    old.stop()
    with pytest.raises(ShardUnavailable, match="shard-1"):
        client.lookup("engram.1", rows).result()
    fresh = cluster.add(ShardServer(Shard("shard-1"), port=port).start())
    with pytest.raises(ShardUnavailable, match="shard-1"):
        client.lookup("engram.1", rows).result()  # there, but not loaded yet
    fresh.shard.prepare(placement, snapshot_uri=cluster.snapshot)
    fresh.shard.activate(placement)
    assert fresh.incarnation != old.incarnation
    found = client.lookup("engram.1", rows).result()
    np.testing.assert_array_equal(found.unique[found.inverse], packed[rows])


def test_a_restart_between_two_lookups_is_not_noticed(cluster, spec: TableSpec, packed: np.ndarray) -> None:
    client = cluster.start(1).connect()
    client.lookup("engram.1", np.arange(10)).result()
    old = cluster.servers[0]
    placement, port = old.shard.placement, int(old.address.rpartition(":")[2])
    old.stop()
    fresh = ShardServer(Shard("shard-0"), port=port)
    fresh.shard.prepare(placement, snapshot_uri=cluster.snapshot)
    fresh.shard.activate(placement)
    cluster.add(fresh.start())
    found = client.lookup("engram.1", np.arange(10)).result()
    np.testing.assert_array_equal(found.unique, packed[:10])


def test_a_new_placement_is_learned_on_the_way(cluster, spec: TableSpec, packed: np.ndarray) -> None:
    client = cluster.start(2).connect()
    client.lookup("engram.1", np.arange(spec.rows)).result()
    cluster.add(ShardServer(Shard("shard-2")).start())
    cluster.activate(2)
    found = client.lookup("engram.1", np.arange(spec.rows)).result()
    np.testing.assert_array_equal(found.unique[found.inverse], packed)
    assert client.stats().shard_rows["shard-2"] > 0


@pytest.mark.parametrize("moved", [0, 1])
def test_a_shard_that_comes_back_elsewhere_is_found(cluster, spec: TableSpec, packed: np.ndarray, moved: int) -> None:
    client = cluster.start(2).connect(0)
    client.lookup("engram.1", np.arange(spec.rows)).result()
    cluster.servers[moved].stop()
    cluster.add(ShardServer(Shard(f"shard-{moved}")).start())
    cluster.servers[moved] = cluster.servers.pop()
    cluster.activate(2)
    found = client.lookup("engram.1", np.arange(spec.rows)).result()
    np.testing.assert_array_equal(found.unique[found.inverse], packed)


def test_the_address_joined_by_wins_over_the_one_a_shard_gives_itself(cluster, spec: TableSpec) -> None:
    cluster.start(1)
    behind = Placement.build(2, [ShardAddress("shard-0", "0.0.0.0:1")], [spec])
    cluster.servers[0].shard.activate(behind)
    cluster.connect().lookup("engram.1", np.arange(9)).result()


def test_a_shard_left_behind_under_an_old_epoch(cluster, spec: TableSpec) -> None:
    client = cluster.start(2).connect()
    placement = replace(cluster.servers[0].shard.placement, epoch=2)
    cluster.servers[0].shard.activate(placement)
    client.lookup("engram.1", np.arange(spec.rows)).result()  # the old epoch is answered still
    cluster.servers[0].shard.retire(2)
    while (error := client.lookup("engram.1", np.arange(spec.rows)).exception()) is None:
        pass  # until the client has heard of epoch 2, each shard is asked under its own
    assert isinstance(error, WrongEpoch)
    assert "shard-1 serves epoch 1, asked under epoch 2" in str(error)
    cluster.servers[1].shard.activate(placement)
    client.lookup("engram.1", np.arange(spec.rows)).result()


def test_a_request_beyond_the_limit(cluster, spec: TableSpec) -> None:
    client = cluster.start(1, config=ShardConfig(max_rows=100)).connect()
    with pytest.raises(RequestTooLarge, match=r"101 rows .* shard-0 takes 100"):
        client.lookup("engram.1", np.arange(101)).result()
    client.lookup("engram.1", np.arange(100)).result()


def test_a_dead_shard_of_two_replicas_is_not_noticed(cluster, spec: TableSpec, packed: np.ndarray) -> None:
    client = cluster.start(3, replicas=2).connect()
    client.lookup("engram.1", np.arange(spec.rows)).result()
    cluster.servers[1].stop()
    for _ in range(3):
        found = client.lookup("engram.1", np.arange(spec.rows)).result()
        np.testing.assert_array_equal(found.unique[found.inverse], packed)
    assert client.stats().failed == 0


def test_joining_while_a_shard_of_two_replicas_is_away(cluster, spec: TableSpec, packed: np.ndarray) -> None:
    cluster.start(3, replicas=2)
    cluster.servers[1].stop()
    found = cluster.connect().lookup("engram.1", np.arange(spec.rows)).result()
    np.testing.assert_array_equal(found.unique[found.inverse], packed)
    cluster.servers[2].stop()
    with pytest.raises(ShardUnavailable, match=r"shard-[12] at .* cannot be reached"):
        cluster.connect()


def test_a_hung_shard_of_two_replicas_is_not_noticed(processes, spec: TableSpec, packed: np.ndarray) -> None:
    """Two replicas in processes of their own, told of a placement that names both for every block."""
    started = processes(2, replicas=2)
    client = started.connect(lookup_timeout_s=60)
    for _ in range(20):
        client.lookup("engram.1", np.arange(spec.rows)).result()
    with frozen(started.pids[1]):
        for _ in range(50):
            found = client.lookup("engram.1", np.arange(spec.rows)).result(timeout=30)
            np.testing.assert_array_equal(found.unique[found.inverse], packed)
    stats = client.stats()
    assert stats.failed == 0
    assert 0 < stats.hedges < 30  # a few until the shard is suspected, then it is hardly asked any more


def test_a_hung_shard_of_two_replicas_is_not_noticed_by_small_lookups(processes, spec: TableSpec, packed) -> None:
    """Their requests fit what a connection buffers, until it is full; nobody knows beforehand when that is."""
    started = processes(2, replicas=2)
    client = started.connect(lookup_timeout_s=5)
    rng = np.random.default_rng(0)
    for _ in range(5):
        for _ in range(int(rng.integers(5, 30))):
            client.lookup("engram.1", rng.integers(0, spec.rows, 1200)).result()
        with frozen(started.pids[1]):
            for _ in range(20):
                ids = rng.integers(0, spec.rows, 1200)
                found = client.lookup("engram.1", ids).result()
                np.testing.assert_array_equal(found.unique[found.inverse], packed[ids])
    assert client.stats().failed == 0


def test_a_hung_shard_is_not_noticed_although_the_budget_for_hedges_is_spent(processes, spec: TableSpec) -> None:
    started = processes(2, replicas=2)
    client = started.connect(lookup_timeout_s=30, hedge_share=1e-9)
    for _ in range(20):
        client.lookup("engram.1", np.arange(spec.rows)).result()
    while client._dispatcher.hedging_budget.spend():
        pass
    with frozen(started.pids[1]):
        for _ in range(10):
            client.lookup("engram.1", np.arange(spec.rows)).result()
    assert client.stats().failed == 0


def test_a_hung_shard_and_a_killed_one_of_three_replicas_are_not_noticed(processes, spec: TableSpec, packed) -> None:
    """The hedges of what the hung shard owes are on their way to the other one when that one dies."""
    started = processes(3, replicas=3)
    clients = [started.connect(lookup_timeout_s=20) for _ in range(3)]
    for client in clients:
        for _ in range(20):
            client.lookup("engram.1", np.arange(spec.rows)).result()
    ids = np.random.default_rng(0).integers(0, spec.rows, 300)

    def lookups(client: MemoryClient, until: threading.Event) -> int:
        done = 0
        while not until.is_set() or done < 100:
            found = client.lookup("engram.1", ids).result()
            np.testing.assert_array_equal(found.unique[found.inverse], packed[ids])
            done += 1
        return done

    ended = threading.Event()
    with ThreadPoolExecutor(3) as threads, frozen(started.pids[0]):
        futures = [threads.submit(lookups, client, ended) for client in clients]
        time.sleep(0.03)
        os.kill(started.pids[1], signal.SIGKILL)
        time.sleep(1)
        ended.set()
        assert sum(future.result() for future in futures) >= 300
    assert sum(client.stats().failed for client in clients) == 0


def test_a_hung_shard_ends_in_a_deadline_that_names_it_and_recovers(processes, spec: TableSpec, packed) -> None:
    started = processes(2)
    client = started.connect(lookup_timeout_s=0.4)
    client.lookup("engram.1", np.arange(spec.rows), timeout_s=30).result()
    with frozen(started.pids[1]):
        futures = [client.lookup("engram.1", np.arange(spec.rows)) for _ in range(5)]
        for future in futures:
            with pytest.raises(DeadlineExceeded, match=r"engram\.1.*0\.4 s from shard-1.*epoch 1") as caught:
                future.result(timeout=30)
            assert (caught.value.table, caught.value.shard, caught.value.epoch) == ("engram.1", "shard-1", 1)
    found = client.lookup("engram.1", np.arange(spec.rows), timeout_s=30).result()
    np.testing.assert_array_equal(found.unique[found.inverse], packed)
    assert client.stats().failed == 5


def test_a_hung_shard_never_blocks_the_caller(processes, spec: TableSpec) -> None:
    """Far more than a connection buffers; a lookup that wrote to it directly would wait until the shard wakes up."""
    started = processes(1)
    client = started.connect(lookup_timeout_s=0.5)
    client.lookup("engram.1", np.arange(10), timeout_s=30).result()
    ids = np.arange(spec.rows)
    with frozen(started.pids[0]):
        futures = [client.lookup("engram.1", ids) for _ in range(800)]
        for future in futures:
            assert isinstance(future.exception(timeout=30), DeadlineExceeded)
        client.close()


def test_a_stream_that_stays_silent_is_given_up_and_opened_anew(processes, spec: TableSpec) -> None:
    started = processes(1)
    client = started.connect(lookup_timeout_s=0.3, stall_s=0.1, connect_timeout_s=0.2)
    client.lookup("engram.1", np.arange(10), timeout_s=30).result()
    with frozen(started.pids[0]):
        for _ in range(2):
            with pytest.raises((DeadlineExceeded, ShardUnavailable), match="shard-0"):
                client.lookup("engram.1", np.arange(10)).result(timeout=30)
    eventually(lambda: client.lookup("engram.1", np.arange(10), timeout_s=30).result())


def test_a_killed_shard_fails_what_was_under_way(processes, spec: TableSpec) -> None:
    started = processes(2)
    client = started.connect(lookup_timeout_s=60)
    client.lookup("engram.1", np.arange(spec.rows)).result()
    stop(started.pids[1])
    future = client.lookup("engram.1", np.arange(spec.rows))
    os.kill(started.pids[1], signal.SIGKILL)
    with pytest.raises(ShardUnavailable, match="shard-1"):
        future.result(timeout=30)


@pytest.mark.usefixtures("in_python")
def test_a_stopping_shard_answers_what_it_was_asked(cluster, spec: TableSpec, packed: np.ndarray) -> None:
    client = cluster.start(1).connect()
    client.lookup("engram.1", np.arange(10)).result()
    asked = threading.Event()
    gather = ShardTable.gather

    def slow(self: ShardTable, local: np.ndarray, out: np.ndarray) -> None:
        asked.set()
        time.sleep(0.2)
        gather(self, local, out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardTable, "gather", slow)
        futures = [client.lookup("engram.1", np.arange(9)) for _ in range(3)]
        assert asked.wait(30)
        assert cluster.servers[0].stop()
        for future in futures:
            np.testing.assert_array_equal(future.result().unique, packed[:9])
    with pytest.raises(ShardUnavailable, match="shard-0"):
        client.lookup("engram.1", np.arange(9)).result()
