from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memory_service import (
    FingerprintMismatch,
    InvalidRequest,
    Placement,
    RequestTooLarge,
    RowOutOfRange,
    ShardAddress,
    ShardUnavailable,
    Snapshot,
    SnapshotError,
    TableSpec,
    UnknownTable,
    WrongEpoch,
    write_snapshot,
)
from memory_service.errors import OldVersion
from memory_service.shard.shard import Shard, ShardConfig


def placement_of(spec: TableSpec, epoch: int = 1, shards: int = 2, replicas: int = 1) -> Placement:
    return Placement.build(epoch, [ShardAddress(f"shard-{i}", "") for i in range(shards)], [spec], replicas)


@pytest.fixture
def shard(snapshot: Path, spec: TableSpec) -> Shard:
    shard = Shard("shard-0", ShardConfig(max_rows=100))
    shard.prepare(placement_of(spec), snapshot_uri=snapshot)
    shard.activate(placement_of(spec))
    return shard


@pytest.fixture
def mine(spec: TableSpec) -> np.ndarray:
    return placement_of(spec).blocks_of(spec.name, "shard-0") * spec.block_rows


def test_a_shard_answers_for_its_own_blocks(
    shard: Shard, spec: TableSpec, packed: np.ndarray, mine: np.ndarray
) -> None:
    rows, epoch, version = shard.lookup("engram.1", mine, 1, spec.fingerprint)
    np.testing.assert_array_equal(rows, packed[mine])
    assert (epoch, version) == (1, 0)


def test_holds_only_what_the_placement_gives_it(shard: Shard, spec: TableSpec) -> None:
    other = placement_of(spec).blocks_of(spec.name, "shard-1") * spec.block_rows
    assert other.size
    with pytest.raises(RowOutOfRange, match="does not hold"):
        shard.lookup("engram.1", other, 1, spec.fingerprint)


def test_a_table_that_is_older_than_asked_is_refused(shard: Shard, spec: TableSpec, mine: np.ndarray) -> None:
    shard.tables["engram.1"].version = 5
    for version in (0, 4, 5):
        assert shard.lookup("engram.1", mine, 1, spec.fingerprint, version)[2] == 5
    with pytest.raises(OldVersion, match=r"engram\.1.*shard-0 has version 5, asked for 6 or later"):
        shard.lookup("engram.1", mine, 1, spec.fingerprint, 6)


def test_a_lookup_that_cannot_be_answered_is_refused_by_name(shard: Shard, spec: TableSpec, mine: np.ndarray) -> None:
    with pytest.raises(UnknownTable, match=r"engram\.9"):
        shard.lookup("engram.9", mine, 1, spec.fingerprint)
    with pytest.raises(FingerprintMismatch, match=r"engram\.1.*shard-0"):
        shard.lookup("engram.1", mine, 1, "00" * 32)
    for epoch in (0, 2):
        with pytest.raises(WrongEpoch, match=f"shard-0 serves epoch 1, asked under epoch {epoch}"):
            shard.lookup("engram.1", mine, epoch, spec.fingerprint)
    with pytest.raises(InvalidRequest, match="int32"):
        shard.lookup("engram.1", mine.astype(np.int32), 1, spec.fingerprint)
    with pytest.raises(RequestTooLarge, match=r"101 rows .* takes 100"):
        shard.lookup("engram.1", np.repeat(mine[0], 101), 1, spec.fingerprint)
    with pytest.raises(RowOutOfRange, match="1650"):
        shard.lookup("engram.1", np.array([1650]), 1, spec.fingerprint)
    assert shard.stats().requests == 0


def test_a_shard_counts_the_lookups_it_answers(shard: Shard, spec: TableSpec, mine: np.ndarray) -> None:
    for _ in range(3):
        shard.lookup("engram.1", mine, 1, spec.fingerprint)
    stats = shard.stats()
    assert (stats.requests, stats.rows, stats.bytes) == (3, 3 * len(mine), 3 * len(mine) * spec.row_bytes)
    assert {stage: spent.count for stage, spent in stats.stages.items() if spent.count} == {"locate": 3, "gather": 3}


def test_a_shard_serves_nothing_before_its_first_activation(snapshot: Path, spec: TableSpec, mine: np.ndarray) -> None:
    shard = Shard("shard-0")
    with pytest.raises(ShardUnavailable, match="no active placement"):
        shard.lookup("engram.1", mine, 1, spec.fingerprint)
    with pytest.raises(WrongEpoch, match="does not hold the blocks"):
        shard.activate(placement_of(spec))
    shard.prepare(placement_of(spec), snapshot_uri=snapshot)
    shard.lookup("engram.1", mine, 1, spec.fingerprint)  # others may serve it before this shard is told
    assert shard.placement is None


def test_an_older_epoch_is_refused_and_the_same_one_is_not(shard: Shard, spec: TableSpec) -> None:
    shard.activate(placement_of(spec, 5))
    shard.activate(placement_of(spec, 5))
    with pytest.raises(WrongEpoch, match="serves epoch 5 and does not go back to 4"):
        shard.activate(placement_of(spec, 4))
    assert shard.placement is not None
    assert shard.placement.epoch == 5


def test_a_placement_with_more_blocks_needs_a_preparation_first(
    shard: Shard, spec: TableSpec, packed: np.ndarray, snapshot: Path, mine: np.ndarray
) -> None:
    alone = placement_of(spec, 2, shards=1)
    with pytest.raises(WrongEpoch, match="does not hold the blocks"):
        shard.activate(alone)
    shard.prepare(alone, snapshot_uri=snapshot)
    shard.lookup("engram.1", mine, 1, spec.fingerprint)  # the old placement serves until the new one is activated
    shard.activate(alone)
    rows, _, _ = shard.lookup("engram.1", np.arange(0, 1650, 20), 2, spec.fingerprint)
    np.testing.assert_array_equal(rows, packed[::20])


def test_a_failed_preparation_leaves_the_shard_as_it_was(
    shard: Shard, spec: TableSpec, packed: np.ndarray, snapshot: Path, mine: np.ndarray
) -> None:
    [path] = (snapshot / "engram.1").iterdir()
    content = bytearray(path.read_bytes())
    missing = placement_of(spec).blocks_of(spec.name, "shard-1")[0]
    content[content.index(packed[missing * spec.block_rows].tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(Exception, match="checksum"):
        shard.prepare(placement_of(spec, 2, shards=1), snapshot_uri=snapshot)
    shard.lookup("engram.1", mine, 1, spec.fingerprint)


@pytest.mark.parametrize("bytes_left", [0, 5000])
def test_a_file_truncated_while_it_is_loaded_is_named_and_the_shard_lives(
    snapshot: Path, spec: TableSpec, packed: np.ndarray, monkeypatch: pytest.MonkeyPatch, bytes_left: int
) -> None:
    [path] = (snapshot / "engram.1").iterdir()
    content = path.read_bytes()
    read_blocks = Snapshot.read_blocks

    def read_and_truncate(opened: Snapshot, table: str, blocks: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        for number, item in enumerate(read_blocks(opened, table, blocks)):
            yield item
            if number == 2:
                os.truncate(path, bytes_left)

    shard, placement = Shard("shard-0"), placement_of(spec, shards=1)
    with monkeypatch.context() as patched:
        patched.setattr(Snapshot, "read_blocks", read_and_truncate)
        with pytest.raises(SnapshotError, match=rf"{path.name}, table 'engram\.1', block 3: the block cannot be read"):
            shard.prepare(placement, snapshot_uri=snapshot)
    assert shard.tables["engram.1"].blocks.tolist() == [0, 1, 2]
    path.write_bytes(content)  # restored from a copy
    shard.prepare(placement, snapshot_uri=snapshot)
    shard.activate(placement)
    rows, _, _ = shard.lookup("engram.1", np.arange(spec.rows), 1, spec.fingerprint)
    np.testing.assert_array_equal(rows, packed)


def test_nothing_is_allocated_for_blocks_that_no_placement_has(
    snapshot: Path, spec: TableSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer may claim a table of any size; a placement has as many blocks as fit its message."""
    huge = replace(spec, column_rows=(1 << 46,) * 4, block_rows=1)
    monkeypatch.setattr("memory_service.shard.block_sources.Sources.describe", lambda *_: (huge, 0))
    with pytest.raises(InvalidRequest, match=rf"the placement has 26 blocks .* the table {1 << 48}"):
        Shard("shard-0").prepare(placement_of(spec), snapshot_uri=snapshot)


def test_a_placement_for_other_tables_is_refused(snapshot: Path, make_spec: object) -> None:
    other = make_spec(block_rows=32)  # type: ignore[operator]
    with pytest.raises(InvalidRequest, match=r"52 blocks .* the table 26"):
        Shard("shard-0").prepare(placement_of(other), snapshot_uri=snapshot)
    with pytest.raises(UnknownTable, match=r"engram\.4"):
        Shard("shard-0").prepare(placement_of(make_spec("engram.4")), snapshot_uri=snapshot)  # type: ignore[operator]


def test_the_version_of_a_snapshot_is_reported(tmp_path: Path, spec: TableSpec, packed: np.ndarray) -> None:
    write_snapshot(tmp_path / "trained", {spec: packed}, version=41)
    alone = placement_of(spec, shards=1)
    shard = Shard("shard-0")
    shard.prepare(alone, snapshot_uri=tmp_path / "trained")
    shard.activate(alone)
    assert shard.lookup("engram.1", np.array([0]), 1, spec.fingerprint)[2] == 41
    version, entries = shard.write_snapshot(tmp_path / "again", "engram.1", "x-", range(spec.blocks), {})
    assert version == 41
    assert sorted(entries) == list(range(spec.blocks))


def test_a_table_that_goes_as_a_whole_lets_go_of_its_blocks(shard: Shard, spec: TableSpec) -> None:
    table = shard.tables["engram.1"]
    shard.activate(Placement(2, placement_of(spec).shards, {}))
    assert table.nbytes > 0
    shard.retire(2)
    assert not shard.tables
    assert (table.nbytes, table.blocks.size) == (0, 0)


def test_callbacks_are_called_after_every_activation(shard: Shard, spec: TableSpec) -> None:
    heard: list[int] = []
    shard.when_serving(lambda: heard.append(1))
    shard.activate(placement_of(spec, 2))
    assert len(heard) == 2


def test_only_blocks_that_differ_from_the_base_are_written(shard: Shard, snapshot: Path, tmp_path: Path) -> None:
    blocks = shard.tables["engram.1"].blocks.tolist()
    base = dict(enumerate(Snapshot.open(snapshot).table("engram.1").blocks))
    base[blocks[0]] = replace(base[blocks[0]], digest="0" * 32)
    _, entries = shard.write_snapshot(tmp_path / "part", "engram.1", "x-", blocks, base)
    assert sorted(entries) == blocks
    assert [block for block in blocks if entries[block] != base[block]] == blocks[:1]
    [written] = (tmp_path / "part/engram.1").iterdir()
    assert entries[blocks[0]].file == f"engram.1/{written.name}" == "engram.1/x-shard-0-00000.arrow"


def test_a_shard_writes_no_block_that_it_does_not_hold(shard: Shard, spec: TableSpec, tmp_path: Path) -> None:
    other = sorted(set(range(spec.blocks)) - set(shard.tables["engram.1"].blocks.tolist()))[0]
    with pytest.raises(RowOutOfRange, match=f"block {other}"):
        shard.write_snapshot(tmp_path / "part", "engram.1", "x-", [other], {})


@pytest.mark.parametrize("prefix", ["../", "/tmp/", "a/../../", "..", "a\\", "a\0", "\ud800", "é"])
def test_a_prefix_that_leads_out_of_the_table_folder_is_refused(shard: Shard, tmp_path: Path, prefix: str) -> None:
    blocks = shard.tables["engram.1"].blocks.tolist()
    with pytest.raises(InvalidRequest, match=r"prefix=.* is no beginning of a file name"):
        shard.write_snapshot(tmp_path / "part", "engram.1", prefix, blocks, {})
    assert not (tmp_path / "part").exists()


@pytest.mark.parametrize("name", ["host/shard", "../shard", "10.0.0.1:7000", "fünf"])
def test_a_shard_of_any_name_writes_into_the_table_folder(
    snapshot: Path, spec: TableSpec, tmp_path: Path, name: str
) -> None:
    shard = Shard(name)
    placement = Placement.build(1, [ShardAddress(name, "127.0.0.1:7000")], [spec])
    shard.prepare(placement, snapshot_uri=snapshot)
    shard.activate(placement)
    _, entries = shard.write_snapshot(tmp_path / "part", "engram.1", "x-", range(spec.blocks), {})
    [written] = (tmp_path / "part").rglob("*.arrow")
    assert {entry.file for entry in entries.values()} == {f"engram.1/{written.name}"}
