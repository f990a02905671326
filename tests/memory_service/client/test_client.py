"""Lookups over the network, against the packed source."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from memory_service import (
    ClientConfig,
    InvalidRequest,
    LocalMemory,
    MemoryClient,
    MemoryServiceError,
    RowFormat,
    RowOutOfRange,
    Snapshot,
    TableSpec,
    UnknownTable,
    check_fingerprints,
    write_snapshot,
)

Cluster = Callable[..., object]


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
@pytest.mark.parametrize("row_format", list(RowFormat))
def test_rows_are_the_source_to_the_bit(
    tmp_path: Path, make_spec, make_packed, stack: ExitStack, cluster, row_format: RowFormat, shards: int
) -> None:
    specs = [make_spec(f"engram.{layer}", layer=layer, row_format=row_format) for layer in (1, 4)]
    tables = {spec: make_packed(spec, spec.layer) for spec in specs}
    write_snapshot(tmp_path / "two", tables)
    network = type(cluster)(tmp_path / "two", specs, stack).start(shards).connect(shards - 1)
    local = LocalMemory.load(tmp_path / "two")
    rng = np.random.default_rng(shards)
    for spec, packed in tables.items():
        for shape in [(64, 4), (1,), (1650,)]:
            ids = rng.integers(0, spec.rows, shape)
            rows, near = network.lookup(spec.name, ids).result(), local.lookup(spec.name, ids).result()
            assert rows.inverse.shape == shape
            assert rows.inverse.dtype == np.int64
            assert len(rows.unique) == len(near.unique)
            np.testing.assert_array_equal(rows.unique[rows.inverse], packed[ids])
            np.testing.assert_array_equal(rows.unique[rows.inverse], near.unique[near.inverse])


def test_every_row_of_the_table(cluster, packed: np.ndarray, spec: TableSpec) -> None:
    rows = cluster.start(3).connect().lookup("engram.1", np.arange(spec.rows)).result()
    np.testing.assert_array_equal(rows.unique[rows.inverse], packed)


def test_specs_are_learned_from_the_shards(cluster, spec: TableSpec) -> None:
    client = cluster.start(2).connect(1)
    assert client.specs == {"engram.1": spec}
    check_fingerprints(client, [spec])


@pytest.mark.parametrize("shape", [(0,), (3, 0), ()])
def test_odd_shapes(cluster, packed: np.ndarray, shape: tuple[int, ...]) -> None:
    rows = cluster.start(2).connect().lookup("engram.1", np.full(shape, 99)).result()
    np.testing.assert_array_equal(rows.unique[rows.inverse], packed[np.full(shape, 99)])


def test_the_buffer_is_the_callers_to_change(cluster, packed: np.ndarray) -> None:
    client = cluster.start(1).connect()
    client.lookup("engram.1", np.arange(10)).result().unique[:] = 0
    np.testing.assert_array_equal(client.lookup("engram.1", np.arange(10)).result().unique, packed[:10])


def test_bad_requests_raise_at_once_and_harm_nobody(cluster, packed: np.ndarray) -> None:
    client = cluster.start(2).connect()
    with pytest.raises(UnknownTable, match=r"engram\.2.*engram\.1"):
        client.lookup("engram.2", np.array([0]))
    with pytest.raises(InvalidRequest, match="float32"):
        client.lookup("engram.1", np.array([1.0], np.float32))
    with pytest.raises(RowOutOfRange, match=r"engram\.1.*1649.*1650"):
        client.lookup("engram.1", np.array([0, 1650]))
    np.testing.assert_array_equal(client.lookup("engram.1", np.array([7])).result().unique, packed[[7]])


def test_a_large_lookup_travels_in_several_requests(cluster, packed: np.ndarray, spec: TableSpec) -> None:
    client = cluster.start(2).connect(request_rows=100)
    rows = client.lookup("engram.1", np.arange(spec.rows)).result()
    np.testing.assert_array_equal(rows.unique[rows.inverse], packed)
    requests = [server.shard.stats().requests for server in cluster.servers]
    shares = [server.shard.stats().rows for server in cluster.servers]
    assert requests == [-(-share // 100) for share in shares]


def test_two_clients_and_many_threads_at_once(cluster, packed: np.ndarray, spec: TableSpec) -> None:
    cluster.start(3)
    clients = [cluster.connect(0), cluster.connect(2)]

    def ask(seed: int) -> bool:
        ids = np.random.default_rng(seed).integers(0, spec.rows, (seed % 40, 4))
        rows = clients[seed % 2].lookup("engram.1", ids).result()
        return bool((rows.unique[rows.inverse] == packed[ids]).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(200)))
    assert sum(client.stats().lookups for client in clients) == 200


def test_many_lookups_on_their_way_at_once(cluster, packed: np.ndarray, spec: TableSpec) -> None:
    client = cluster.start(3).connect()
    asked = [np.random.default_rng(seed).integers(0, spec.rows, 100) for seed in range(100)]
    futures = [client.lookup("engram.1", ids) for ids in asked]
    for ids, future in zip(asked, futures, strict=True):
        rows = future.result()
        np.testing.assert_array_equal(rows.unique[rows.inverse], packed[ids])


def test_stats_say_what_was_fetched_from_whom(cluster, spec: TableSpec) -> None:
    client = cluster.start(3).connect()
    for _ in range(4):
        client.lookup("engram.1", np.array([[1, 1, 700], [1300, 1300, 1]])).result()
    client.lookup("engram.1", np.empty(0, np.int64)).result()
    client.close()  # a part is counted once its lookup has ended
    stats = client.stats()
    assert (stats.lookups, stats.failed, stats.rows, stats.unique_rows) == (5, 0, 24, 12)
    assert stats.bytes == 12 * spec.row_bytes
    assert dict(stats.shard_rows) == {
        server.shard.name: server.shard.stats().rows for server in cluster.servers if server.shard.stats().rows
    }
    assert stats.lookup_seconds > 0


def test_a_finished_lookup_is_let_go_without_the_garbage_collector(cluster) -> None:
    client = cluster.start(2).connect()
    gc.collect()
    gc.disable()
    try:
        future = client.lookup("engram.1", np.arange(500), timeout_s=60)
        buffer = weakref.ref(future.result().unique)
        del future
        while buffer() is not None:  # a thread may be on its way out of the callback; the test's time limit bounds this
            time.sleep(0.01)
    finally:
        gc.enable()


def test_a_cancelled_future_is_the_callers_affair(cluster, packed: np.ndarray) -> None:
    client = cluster.start(1).connect()
    client.lookup("engram.1", np.arange(500)).cancel()
    np.testing.assert_array_equal(client.lookup("engram.1", np.arange(9)).result().unique, packed[:9])


def test_closing_ends_everything(cluster) -> None:
    client = cluster.start(2).connect()
    futures = [client.lookup("engram.1", np.arange(800)) for _ in range(50)]
    client.close()
    client.close()
    assert all(isinstance(future.exception(timeout=10), MemoryServiceError | None) for future in futures)
    with pytest.raises(MemoryServiceError, match="closed"):
        client.lookup("engram.1", np.arange(8))


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_snapshot_taken_from_the_shards_is_the_tables(
    cluster, tmp_path: Path, packed: np.ndarray, spec: TableSpec, replicas: int
) -> None:
    client = cluster.start(3, replicas).connect()
    client.snapshot(tmp_path / "copy")
    assert Snapshot.open(tmp_path / "copy").specs == {"engram.1": spec}
    everything = LocalMemory.load(tmp_path / "copy").lookup("engram.1", np.arange(spec.rows)).result()
    np.testing.assert_array_equal(everything.unique, packed)


def test_config_values_must_be_positive() -> None:
    with pytest.raises(ValueError, match="lookup_timeout_s: 0"):
        ClientConfig(lookup_timeout_s=0)


def test_replicas_answer_alike(cluster, packed: np.ndarray, spec: TableSpec) -> None:
    client: MemoryClient = cluster.start(3, replicas=3).connect()
    rows = client.lookup("engram.1", np.arange(spec.rows)).result()
    np.testing.assert_array_equal(rows.unique[rows.inverse], packed)
