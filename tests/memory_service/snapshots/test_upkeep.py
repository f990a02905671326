from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from memory_service import Snapshot, SnapshotError
from memory_service.snapshots.snapshot import generations
from memory_service.snapshots.store import open_store
from memory_service.snapshots.upkeep import UNDER_WAY_S, prune, verify
from memory_service.snapshots.writer import write_blocks

from .series import CHANGING, SPEC, check_whole, files_of, flip_bit_of_block, manifest_of, rows_of, write_generation


@pytest.fixture
def series(tmp_path: Path) -> Path:
    for generation in range(4):
        write_generation(tmp_path, generation)
    return tmp_path


def leftover(series: Path, generation: int, age_s: float) -> list[Path]:
    """What a writer that was killed as it sealed leaves behind: the half of each file."""
    prefix = f"{generation:06d}-0a1b2c3d-"
    write_blocks(open_store(series), SPEC, [(0, rows_of(9, 0))], prefix, {})
    paths = [series / SPEC.name / f"{prefix}00000.arrow", series / f"{prefix}manifest.tmp"]
    paths[1].write_bytes(manifest_of(series, 3).read_bytes())
    for path in paths:
        os.truncate(path, path.stat().st_size // 2)
        os.utime(path, (time.time() - age_s,) * 2)
    return paths


def test_verify_tells_new_blocks_from_shared_ones(series: Path) -> None:
    reports = verify(series)
    assert [report.generation for report in reports] == [0, 1, 2, 3]
    assert [report.new_blocks for report in reports] == [SPEC.blocks, *[len(CHANGING)] * 3]
    assert {(report.blocks, report.bytes, report.damage) for report in reports} == {
        (SPEC.blocks, SPEC.rows * SPEC.row_bytes, ())
    }


def test_verify_names_every_damaged_block_of_a_generation(series: Path) -> None:
    for block in CHANGING[1], CHANGING[3]:
        flip_bit_of_block(Snapshot.open(series), series, block)
    damage = [report.damage for report in verify(series)]
    assert damage[:3] == [(), (), ()]
    assert [f"block {block}:" in sentence for block, sentence in zip((4, 12), damage[3], strict=True)] == [True, True]


def test_verify_of_an_empty_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="never finished"):
        verify(tmp_path)


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
def test_prune_keeps_the_newest_intact_generations(series: Path, keep: int) -> None:
    deleted = prune(series, keep)
    kept = range(max(0, 4 - keep), 4)
    assert generations(open_store(series)) == list(kept)
    assert len(deleted) == 2 * (4 - len(kept)) - (len(kept) < 4)  # the first file has blocks that all share
    for generation in kept:
        check_whole(Snapshot.open(f"{series}?generation={generation}"))
    assert prune(series, keep) == []


def test_prune_counts_only_generations_that_are_intact(series: Path) -> None:
    files_of(series, 3)[0].unlink()
    prune(series, 1)
    assert generations(open_store(series)) == [2, 3]
    check_whole(Snapshot.open(series))


def test_prune_keeps_what_a_manifest_that_cannot_be_read_may_name(series: Path) -> None:
    content = manifest_of(series, 3).read_bytes()
    os.truncate(manifest_of(series, 3), 100)
    prune(series, 1)
    check_whole(Snapshot.open(series))
    manifest_of(series, 3).write_bytes(content)  # restored from a copy
    check_whole(Snapshot.open(f"{series}?generation=3"))


def test_prune_deletes_nothing_where_nothing_is_whole(series: Path) -> None:
    files_of(series, 0)[0].unlink()
    with pytest.raises(SnapshotError, match="nothing is deleted"):
        prune(series, 1)
    assert generations(open_store(series)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("generation", "age_s", "goes"), [(3, 0, True), (4, 0, False), (4, UNDER_WAY_S + 60, True), (0, 0, True)]
)
def test_prune_deletes_what_was_never_finished(series: Path, generation: int, age_s: float, goes: bool) -> None:
    paths = leftover(series, generation, age_s)
    assert len(prune(series, 9)) == (2 if goes else 0)
    assert [path.exists() for path in paths] == [not goes] * 2
    check_whole(Snapshot.last_good(series))


def test_the_last_generation_is_not_for_pruning(series: Path) -> None:
    with pytest.raises(ValueError, match="keep=0"):
        prune(series, 0)
