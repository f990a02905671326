"""The cache of hot rows in front of the network."""

from __future__ import annotations

import time

import numpy as np

from memory_service import TableSpec


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


def test_a_lookup_never_mixes_versions(cluster, spec: TableSpec, packed: np.ndarray) -> None:
    client = cluster.start(2).connect(cache_bytes=1 << 20)
    client.lookup("engram.1", np.arange(0, spec.rows, 2)).result()
    for server in cluster.servers:
        table = server.shard.tables["engram.1"]
        changed = {block: table.copy_block(block) ^ 255 for block in table.blocks.tolist()}
        table.drop(table.blocks)
        table.version = 7
        table.add(changed.items())
    rows = client.lookup("engram.1", np.arange(spec.rows)).result()
    np.testing.assert_array_equal(rows.unique[rows.inverse], packed ^ 255)
