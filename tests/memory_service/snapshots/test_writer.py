from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memory_service import Snapshot, SnapshotError, extend_snapshot, write_snapshot
from memory_service.snapshots.manifest import TableEntry
from memory_service.snapshots.upkeep import summary
from memory_service.snapshots.writer import NewGeneration, write_blocks

from .series import CHANGING, SPEC, check_whole, files_of, rows_of, write_generation


def blocks_of(generation: int) -> list[np.ndarray]:
    return [rows_of(generation, block) for block in range(SPEC.blocks)]


def test_a_later_generation_holds_what_changed(tmp_path: Path) -> None:
    for generation in range(3):
        written = summary(write_generation(tmp_path, generation))
        assert (written.generation, written.blocks) == (generation, SPEC.blocks)
        assert written.new_blocks == (len(CHANGING) if generation else SPEC.blocks)
        assert 0 < written.new_bytes < sum(path.stat().st_size for path in files_of(tmp_path, generation))
    for generation in range(3):
        check_whole(Snapshot.open(f"{tmp_path}?generation={generation}"))
    assert Snapshot.open(tmp_path).generation == 2


def test_a_generation_of_unchanged_rows_writes_no_block(tmp_path: Path) -> None:
    write_generation(tmp_path, 0)
    assert summary(write_generation(tmp_path, 0)).new_blocks == 0
    assert files_of(tmp_path, 1) == []
    check_whole(Snapshot.open(tmp_path))


def test_a_full_generation_writes_every_block_anew(tmp_path: Path) -> None:
    write_generation(tmp_path, 0)
    full = extend_snapshot(tmp_path, {SPEC: blocks_of(0)}, full=True)
    assert summary(full).new_blocks == SPEC.blocks
    [old] = files_of(tmp_path, 0)
    old.unlink()
    check_whole(Snapshot.last_good(tmp_path))


def test_other_blocks_of_the_same_rows_share_nothing(tmp_path: Path) -> None:
    write_generation(tmp_path, 0)
    halves = replace(SPEC, block_rows=128)
    packed = np.concatenate(blocks_of(0))
    assert summary(extend_snapshot(tmp_path, {halves: packed})).new_blocks == halves.blocks


def test_a_directory_with_other_tables_is_refused(tmp_path: Path) -> None:
    write_generation(tmp_path, 0)
    with pytest.raises(SnapshotError, match=r"differs in pad_id: choose another directory"):
        extend_snapshot(tmp_path, {replace(SPEC, pad_id=3): blocks_of(0)})
    with pytest.raises(SnapshotError, match=r"holds the tables \['engram.1'\], not \['engram.9'\]"):
        extend_snapshot(tmp_path, {replace(SPEC, name="engram.9"): blocks_of(0)})


def test_rows_of_one_version_cannot_differ(tmp_path: Path) -> None:
    write_generation(tmp_path, 0)
    with pytest.raises(SnapshotError, match=r"block 0 differs from .*generation=0, though both are version 0"):
        extend_snapshot(tmp_path, {SPEC: blocks_of(1)}, version=0, full=True)
    assert files_of(tmp_path, 1) == []
    check_whole(Snapshot.open(tmp_path))


def test_write_snapshot_refuses_a_directory_that_has_one(tmp_path: Path) -> None:
    write_generation(tmp_path, 0)
    with pytest.raises(SnapshotError, match="already holds a snapshot"):
        write_snapshot(tmp_path, {SPEC: blocks_of(0)})


def test_a_generation_is_not_a_place_to_write_to(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="give the directory alone"):
        extend_snapshot(f"{tmp_path}?generation=1", {SPEC: blocks_of(0)})


def write_while(directory: Path, meanwhile: Callable[[], object]) -> None:
    """Write generation 7's rows, and seal them after something else has happened."""
    with NewGeneration(directory, [SPEC]) as new:
        entries = write_blocks(new.store, SPEC, enumerate(blocks_of(7)), new.prefix, new.base(SPEC))
        meanwhile()
        new.seal([TableEntry(SPEC, 7, tuple(entries[block] for block in range(SPEC.blocks)))])


def test_only_the_first_of_two_writers_seals_a_generation(tmp_path: Path) -> None:
    write_generation(tmp_path, 0)
    with pytest.raises(SnapshotError, match="another snapshot was faster"):
        write_while(tmp_path, lambda: write_generation(tmp_path, 1))
    check_whole(Snapshot.open(tmp_path))
    assert Snapshot.open(tmp_path).generation == Snapshot.open(tmp_path).table(SPEC.name).version == 1


def test_a_file_deleted_under_the_writer_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="was deleted meanwhile"):
        write_while(tmp_path, lambda: files_of(tmp_path, 0)[0].unlink())
    assert list(tmp_path.rglob("*.json")) == []
