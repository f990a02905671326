"""The cache of hot rows in front of the network."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest

from memory_service import InvalidRequest, MemoryClient, OldVersion, TableSpec
from memory_service.server.server import ShardServer
from memory_service.shard.shard import ShardConfig


def test_hot_rows_are_not_asked_for_again(cluster, spec: TableSpec, packed: np.ndarray) -> None:
    client = cluster.start(2).connect(cache_bytes=1 << 22)
    for _ in range(3):
        rows = client.lookup("engram.1", np.arange(spec.rows)).result()
        np.testing.assert_array_equal(rows.unique[rows.inverse], packed)
        while sum(client.stats().shard_rows.values()) < spec.rows:
            time.sleep(0.01)  # rows are kept after the lookup has ended; the test's time limit bounds this
    assert client.stats().cache_hits == 2 * spec.rows
    assert client.stats().cache_misses == spec.rows


def test_part_of_a_lookup_comes_from_the_cache(cluster, spec: TableSpec, packed: np.ndarray) -> None:
    client = cluster.start(3).connect(cache_bytes=1 << 16)
    rng = np.random.default_rng(0)
    for _ in range(50):
        ids = rng.zipf(1.3, 200) % spec.rows
        rows = client.lookup("engram.1", ids).result()
        np.testing.assert_array_equal(rows.unique[rows.inverse], packed[ids])
    client.close()  # a part is counted once its lookup has ended
    stats = client.stats()
    assert 0 < stats.cache_hits < stats.unique_rows
    assert stats.cache_hits + stats.cache_misses == stats.unique_rows
    assert sum(stats.shard_rows.values()) == stats.cache_misses


def test_the_cache_is_safe_from_what_callers_do_to_their_rows(cluster, packed: np.ndarray) -> None:
    client = cluster.start(1).connect(cache_bytes=1 << 20)
    for _ in range(20):
        rows = client.lookup("engram.1", np.arange(100)).result()
        np.testing.assert_array_equal(rows.unique[rows.inverse], packed[:100])
        rows.unique[:] = 0


def update(servers: Sequence[ShardServer], version: int) -> None:
    """Turn all bits of the tables of shards."""
    for server in servers:
        table = server.shard.tables["engram.1"]
        changed = {block: table.copy_block(block) ^ 255 for block in table.blocks.tolist()}
        table.drop(table.blocks)
        table.version = version
        table.add(changed.items())


@pytest.fixture(params=[False, True], ids=["network", "mapped"])
def half_cached(request: pytest.FixtureRequest, implementation: str, cluster, spec: TableSpec) -> MemoryClient:
    """A client whose cache has every other row, read over the network."""
    mapped = request.param
    client = cluster.start(2, config=ShardConfig(share_memory=mapped)).connect(cache_bytes=1 << 20, map_local=mapped)
    open_mapping = client._dispatcher._mapping
    client._dispatcher._mapping = lambda *shard: None
    client.lookup("engram.1", np.arange(0, spec.rows, 2)).result()
    while sum(client.stats().shard_rows.values()) < spec.rows // 2:
        time.sleep(0.01)  # rows are kept after the lookup has ended; the test's time limit bounds this
    client._dispatcher._mapping = open_mapping
    client._dispatcher._routes = {}
    return client


def test_a_lookup_never_mixes_versions(half_cached: MemoryClient, cluster, spec: TableSpec, packed: np.ndarray) -> None:
    update(cluster.servers, 7)
    for _ in range(3):
        rows = half_cached.lookup("engram.1", np.arange(spec.rows)).result()
        np.testing.assert_array_equal(rows.unique[rows.inverse], packed ^ 255)


def test_rows_are_as_new_as_is_asked_for(half_cached: MemoryClient, cluster, spec: TableSpec, packed) -> None:
    cached = np.arange(0, spec.rows, 2)
    update(cluster.servers, 7)
    np.testing.assert_array_equal(half_cached.lookup("engram.1", cached).result().unique, packed[cached])
    rows = half_cached.lookup("engram.1", cached, min_version=3).result()
    np.testing.assert_array_equal(rows.unique[rows.inverse], packed[cached] ^ 255)
    for _ in range(2):
        with pytest.raises(OldVersion, match="version 7, asked for 8 or later"):
            half_cached.lookup("engram.1", cached, min_version=8).result()
    update(cluster.servers[:1], 8)
    with pytest.raises(OldVersion, match="version 7, asked for 8 or later"):
        half_cached.lookup("engram.1", np.arange(spec.rows), min_version=8).result()
    update(cluster.servers[1:], 8)
    rows = half_cached.lookup("engram.1", np.arange(spec.rows), min_version=8).result()
    np.testing.assert_array_equal(rows.unique[rows.inverse], packed)


@pytest.mark.parametrize("version", [-1, 1 << 63])
def test_a_version_that_cannot_be_is_refused(cluster, version: int) -> None:
    with pytest.raises(InvalidRequest, match=f"min_version: {version} is no version"):
        cluster.start(1).connect().lookup("engram.1", np.arange(2), min_version=version)
