from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from memory_service import LocalMemory, ShardUnavailable, Snapshot, SnapshotError, TableSpec
from memory_service.server.server import ShardServer
from memory_service.snapshots.upkeep import summary, verify


def rows_of(uri: Path | str, spec: TableSpec) -> np.ndarray:
    return LocalMemory.load(uri).lookup(spec.name, np.arange(spec.rows)).result().unique


def change_block(servers: list[ShardServer], spec: TableSpec, block: int, version: int = 1) -> None:
    """As an update would that every shard commits."""
    for server in servers:
        held = server.shard.tables[spec.name]
        held.version = version
        if held.holds(np.array([block])):
            rows = held.copy_block(block) ^ 255
            held.drop(np.array([block]))
            held.add([(block, rows)])


def test_the_second_snapshot_of_a_memory_holds_what_changed(cluster, tmp_path: Path, packed, spec) -> None:
    client = cluster.start(3, replicas=2).connect()
    assert summary(client.snapshot(tmp_path / "series")).new_blocks == spec.blocks
    change_block(cluster.servers, spec, 7)
    assert summary(client.snapshot(tmp_path / "series")).new_blocks == 1
    assert summary(client.snapshot(tmp_path / "series")).new_blocks == 0
    assert summary(client.snapshot(tmp_path / "series", full=True)).new_blocks == spec.blocks
    changed = packed.copy()
    changed[7 * 64 : 8 * 64] ^= 255
    np.testing.assert_array_equal(rows_of(tmp_path / "series?generation=0", spec), packed)
    for generation in 1, 2, 3:
        np.testing.assert_array_equal(rows_of(tmp_path / f"series?generation={generation}", spec), changed)
    assert not any(report.damage for report in verify(tmp_path / "series"))


def test_replicas_write_for_a_shard_that_is_gone(cluster, tmp_path: Path, packed, spec) -> None:
    client = cluster.start(3, replicas=2).connect(1)
    cluster.servers[0].stop(0.1)
    client.snapshot(tmp_path / "series")
    np.testing.assert_array_equal(rows_of(tmp_path / "series", spec), packed)


def test_replicas_write_for_a_shard_that_fails_halfway(
    cluster, tmp_path: Path, packed, spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = cluster.start(3, replicas=2).connect()
    failing = cluster.servers[0].shard

    def fail(*_: object) -> None:
        raise ShardUnavailable("out of order", shard="shard-0")

    monkeypatch.setattr(failing, "write_snapshot", fail)
    client.snapshot(tmp_path / "series")  # shard-1 and shard-2 write twice, and overwrite nothing
    np.testing.assert_array_equal(rows_of(tmp_path / "series", spec), packed)


def test_a_block_that_nobody_can_write(cluster, tmp_path: Path, packed, spec) -> None:
    client = cluster.start(3).connect(1)
    client.snapshot(tmp_path / "series")
    change_block(cluster.servers, spec, 7)
    cluster.servers[0].stop(0.1)
    with pytest.raises(ShardUnavailable, match=r"'engram\.1' block \d+: none of its shards \(shard-0\) can write it"):
        client.snapshot(tmp_path / "series")
    assert Snapshot.open(tmp_path / "series").generation == 0
    assert list((tmp_path / "series/engram.1").glob("000001-*")) == []
    np.testing.assert_array_equal(rows_of(tmp_path / "series", spec), packed)


def test_rows_that_changed_without_a_commit_are_no_snapshot(cluster, tmp_path: Path, packed, spec) -> None:
    client = cluster.start(3).connect()
    client.snapshot(tmp_path / "series")
    change_block(cluster.servers, spec, 7, version=0)
    with pytest.raises(SnapshotError, match=r"'engram\.1' block 7 differs from .*generation=0, .* both are version 0"):
        client.snapshot(tmp_path / "series")
    np.testing.assert_array_equal(rows_of(tmp_path / "series", spec), packed)


def test_shards_at_different_versions_are_no_snapshot(cluster, tmp_path: Path, spec) -> None:
    client = cluster.start(3).connect()
    change_block(cluster.servers[:1], spec, 7)
    with pytest.raises(SnapshotError, match=r"the shards are at versions \[0, 1\]"):
        client.snapshot(tmp_path / "series")
    assert list((tmp_path / "series").rglob("*.*")) == [tmp_path / "series/engram.1"]


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_a_snapshot_is_restored_into_any_number_of_shards(cluster, tmp_path: Path, packed, spec, stack, shards) -> None:
    from tests.memory_service.conftest import Cluster

    client = cluster.start(2).connect()
    client.snapshot(tmp_path / "series")
    change_block(cluster.servers, spec, 7)
    client.snapshot(tmp_path / "series")
    restored = Cluster(tmp_path / "series?generation=1", [spec], stack).start(shards).connect()
    rows = restored.lookup(spec.name, np.arange(spec.rows)).result(10)
    changed = packed.copy()
    changed[7 * 64 : 8 * 64] ^= 255
    np.testing.assert_array_equal(rows.unique[rows.inverse], changed)
