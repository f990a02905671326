"""Whatever happens to a snapshot in the making or on a disk: the last good one loads, the damage is named."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from memory_service import LocalMemory, Snapshot, SnapshotError, extend_snapshot
from memory_service.snapshots.block_file import BlockFile
from memory_service.snapshots.manifest import TableEntry
from memory_service.snapshots.snapshot import generations
from memory_service.snapshots.store import LocalStore, open_store
from memory_service.snapshots.upkeep import verify

from .series import (
    CHANGING,
    SPEC,
    check_whole,
    files_of,
    flip_bit,
    flip_bit_of_block,
    manifest_of,
    reseal,
    rows_of,
    write_generation,
)

ROOT = Path(__file__).parents[3]
MOMENTS = 50


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Three whole generations."""
    for generation in range(3):
        write_generation(tmp_path / "memory", generation)
    return tmp_path / "memory"


@pytest.fixture
def forked_writers(tmp_path: Path) -> Iterator[Callable[[int, float], tuple[float, int]]]:
    command = [sys.executable, "-m", "tests.memory_service.snapshots.forked_writers", str(tmp_path / "memory")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def write(generation: int, delay_s: float) -> tuple[float, int]:
            print(generation, delay_s, file=process.stdin, flush=True)
            seconds, status = process.stdout.readline().split()  # type: ignore[union-attr]
            return float(seconds), int(status)

        yield write
        process.stdin.close()


def test_a_writer_killed_at_any_moment_leaves_the_last_generation_whole(
    tmp_path: Path, forked_writers: Callable[[int, float], tuple[float, int]]
) -> None:
    usual, status = forked_writers(0, 60)
    assert status == 0
    delays = random.Random(0)
    killed = last = generation = 0
    while killed < MOMENTS:
        generation += 1
        seconds, status = forked_writers(generation, delays.uniform(0, usual))
        snapshot = Snapshot.open(tmp_path / "memory")
        assert snapshot.damage == ()
        assert snapshot.table(SPEC.name).version in ((last, generation) if status else (generation,))
        check_whole(snapshot)
        last = snapshot.table(SPEC.name).version
        killed += status == -signal.SIGKILL
        usual = usual if status else min(usual, seconds)
    assert not any(report.damage for report in verify(tmp_path / "memory"))


WRITE_UNTIL_IT_FAILS = """
import sys
from memory_service import SnapshotError
from tests.memory_service.snapshots.series import write_generation
try:
    for generation in range(int(sys.argv[2]), 100):
        write_generation(sys.argv[1], generation)
except SnapshotError as error:
    print(error)
"""


@contextmanager
def small_tmpfs(folder: Path) -> Iterator[list[str]]:
    """How to run a command that sees a file system of 1 MB at `folder`; skips where that is not permitted."""
    mount = f'mount -t tmpfs -o size=1m tmpfs "{folder}" && exec "$0" "$@"'
    prefix = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount]
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("no tmpfs without privileges here")
    yield prefix


FILL_AND_CHECK = (
    WRITE_UNTIL_IT_FAILS
    + """
from pathlib import Path
from memory_service import Snapshot
from tests.memory_service.snapshots.series import check_whole
snapshot = Snapshot.open(sys.argv[1])
check_whole(snapshot)
left = sorted(path.name for path in Path(sys.argv[1]).rglob("*") if f"{generation:06d}" in path.name)
print(generation, snapshot.generation, snapshot.damage, left)
"""
)


def test_a_full_disk_leaves_the_last_generation_whole(tmp_path: Path) -> None:
    with small_tmpfs(tmp_path) as prefix:
        command = [*prefix, sys.executable, "-c", FILL_AND_CHECK, str(tmp_path / "memory"), "0"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    error, found = done.stdout.splitlines()
    assert "No space left on device" in error
    failed, last, rest = found.split(maxsplit=2)
    assert int(last) == int(failed) - 1 >= 0
    assert rest == "() []"  # nothing is damaged, and the failed attempt has cleaned up


def test_a_file_size_limit_leaves_the_last_generation_whole(series: Path) -> None:
    """As a full disk, where nobody may mount one."""
    limit = 3 * SPEC.block_rows * SPEC.row_bytes
    done = subprocess.run(
        [sys.executable, "-c", WRITE_UNTIL_IT_FAILS, str(series), "3"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "File too large" in done.stdout, done.stderr
    assert files_of(series, 3) == []
    assert Snapshot.open(series).generation == 2
    check_whole(Snapshot.open(series))


@pytest.mark.parametrize("fails", ["_link", "writing"])
def test_an_error_of_the_store_leaves_nothing(series: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    @contextmanager
    def fail(*_: object) -> Iterator[pa.NativeFile]:
        raise SnapshotError(os.strerror(errno.ENOSPC))
        yield

    before = sorted(series.rglob("*"))
    monkeypatch.setattr(LocalStore, fails, fail if fails == "writing" else lambda *_: next(iter(fail().gen)))
    with pytest.raises(SnapshotError, match="No space left"):
        write_generation(series, 3)
    assert sorted(series.rglob("*")) == before


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


SHOWN_BY_OPENING = {
    "truncated file": (lambda d: truncate(files_of(d, 2)[0]), r"file engram\.1/000002-\w+-00000\.arrow .* bytes, not"),
    "missing file": (lambda d: files_of(d, 2)[0].unlink(), r"file engram\.1/000002-\w+-00000\.arrow .* is missing"),
    "flipped bit in the manifest": (lambda d: flip_bit(manifest_of(d, 2), 300), r"manifest-000002\.json is damaged"),
    "truncated manifest": (lambda d: truncate(manifest_of(d, 2)), r"manifest-000002\.json is damaged"),
    "empty manifest": (lambda d: os.truncate(manifest_of(d, 2), 0), r"manifest-000002\.json is damaged"),
    "missing block": (
        lambda d: reseal(manifest_of(d, 2), lambda body: body["tables"][0]["blocks"].pop()),
        r"manifest-000002\.json is damaged, table 'engram\.1' has 32 blocks, 31 are listed",
    ),
    "another format version": (
        lambda d: reseal(manifest_of(d, 2), lambda body: body.update(version=7)),
        r"manifest-000002\.json has format version 7",
    ),
}


@pytest.mark.parametrize("damage", SHOWN_BY_OPENING)
def test_damage_found_on_opening_falls_back_and_is_named(
    series: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    harm, words = SHOWN_BY_OPENING[damage]
    harm(series)
    snapshot = Snapshot.open(series)
    assert snapshot.generation == 1
    check_whole(snapshot)
    [sentence] = snapshot.damage
    assert sentence.startswith("generation 2: ")
    with pytest.raises(SnapshotError, match=words) as error:
        Snapshot.open(f"{series}?generation=2")
    assert str(error.value) in sentence
    assert str(error.value) in caplog.text
    assert [len(report.damage) for report in verify(series)] == [0, 0, 1]


def damage_footer(directory: Path) -> None:
    [path] = files_of(directory, 2)
    flip_bit(path, path.stat().st_size - 3)


SHOWN_BY_READING = {
    "flipped bit in a block": lambda d: flip_bit_of_block(Snapshot.open(d), d, CHANGING[1]),
    "flipped bit in the footer": damage_footer,
}


@pytest.mark.parametrize("damage", SHOWN_BY_READING)
def test_damage_found_on_reading_falls_back_and_is_named(series: Path, damage: str) -> None:
    SHOWN_BY_READING[damage](series)
    with pytest.raises(SnapshotError, match=r"engram\.1/000002-\w+-00000\.arrow, table 'engram\.1', block \d+: the"):
        check_whole(Snapshot.open(series))
    snapshot = Snapshot.last_good(series)
    assert snapshot.generation == 1
    check_whole(snapshot)
    assert all("engram.1/000002-" in sentence for sentence in snapshot.damage)
    memory = LocalMemory.load(series)
    rows = memory.lookup(SPEC.name, np.arange(SPEC.block_rows)).result()
    np.testing.assert_array_equal(rows.unique, rows_of(1, 0))
    with pytest.raises(SnapshotError, match=r"000002"):
        LocalMemory.load(f"{series}?generation=2")


def replaced_by(path: Path, other: bytes) -> None:
    """Put another file in the place of one, as `mv` does."""
    path.with_suffix(".new").write_bytes(other)
    path.with_suffix(".new").replace(path)


MEANWHILE = {
    "truncated to nothing": lambda path: os.truncate(path, 0),
    "truncated within a block": lambda path: os.truncate(path, 5 * SPEC.block_rows * SPEC.row_bytes // 2),
    "overwritten": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}
"""Changes of a file between two reads of blocks; the first two kill a process that maps the file."""


@pytest.mark.parametrize("change", MEANWHILE)
def test_a_file_changed_while_it_is_read_names_the_block(series: Path, change: str) -> None:
    [path] = files_of(series, 2)
    reading = Snapshot.open(series).read_blocks(SPEC.name, CHANGING)
    for _ in range(2):
        block, rows = next(reading)
        np.testing.assert_array_equal(rows, rows_of(2, block))
    MEANWHILE[change](path)
    with pytest.raises(
        SnapshotError, match=rf"file engram\.1/{path.name}, table 'engram\.1', block {CHANGING[2]}: the"
    ):
        next(reading)


def test_a_file_replaced_while_it_is_read_is_read_to_its_end(series: Path) -> None:
    [path] = files_of(series, 2)
    reading = Snapshot.open(series).read_blocks(SPEC.name, CHANGING)
    next(reading)
    replaced_by(path, b"another")
    for block, rows in reading:
        np.testing.assert_array_equal(rows, rows_of(2, block))
    with pytest.raises(SnapshotError, match=rf"{path.name} of table 'engram\.1' has 7 bytes, not"):
        Snapshot.open(f"{series}?generation=2")


@pytest.mark.parametrize("change", MEANWHILE)
@pytest.mark.parametrize("read", [LocalMemory.load, Snapshot.last_good, verify])
def test_readers_of_a_changing_file_fall_back_to_an_intact_generation(
    series: Path, change: str, read: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    [path] = files_of(series, 2)
    read_block = Snapshot._read_block

    def read_then_change(self: Snapshot, table: TableEntry, stored: BlockFile, block: int, rows: np.ndarray) -> None:
        read_block(self, table, stored, block, rows)
        if path.name in table.blocks[block].file:
            MEANWHILE[change](path)

    monkeypatch.setattr(Snapshot, "_read_block", read_then_change)
    found = read(series)
    if isinstance(found, LocalMemory):
        np.testing.assert_array_equal(found.lookup(SPEC.name, np.arange(256)).result().unique, rows_of(1, 0))
    elif isinstance(found, Snapshot):
        assert found.generation == 1
    else:
        assert [bool(report.damage) for report in found] == [False, False, True]


PUT_IN_PLACE = {
    "pipe": (os.mkfifo, "is not a regular file"),
    "directory": (os.mkdir, "is not a regular file"),
    "link to nowhere": (lambda path: os.symlink("nowhere", path), "is not a regular file"),
    "link to itself": (lambda path: os.symlink(path, path), "is not a regular file"),
}


@pytest.mark.parametrize("kind", PUT_IN_PLACE)
def test_something_else_in_the_place_of_a_block_file_is_named(series: Path, kind: str) -> None:
    [path] = files_of(series, 2)
    put, words = PUT_IN_PLACE[kind]
    path.unlink()
    put(path)
    snapshot = Snapshot.open(series)
    assert snapshot.generation == 1
    assert f"file engram.1/{path.name} of table 'engram.1' {words}" in snapshot.damage[0]


@pytest.mark.parametrize("kind", PUT_IN_PLACE)
def test_something_else_in_the_place_of_a_manifest_is_named_and_counted_on(series: Path, kind: str) -> None:
    manifest_of(series, 2).unlink()
    PUT_IN_PLACE[kind][0](manifest_of(series, 2))
    snapshot = Snapshot.open(series)
    assert snapshot.generation == 1
    assert "generation 2: " in snapshot.damage[0]
    assert "cannot use manifest-000002.json" in snapshot.damage[0]
    assert write_generation(series, 3).generation == 3
    check_whole(Snapshot.open(series))


def test_damage_of_a_shared_block_is_damage_of_every_generation_that_has_it(series: Path) -> None:
    flip_bit_of_block(Snapshot.open(series), series, CHANGING[0] + 1)
    with pytest.raises(SnapshotError, match=r"generation 2: .*; generation 1: .*; generation 0: .*block 1: "):
        Snapshot.last_good(series)
    assert [len(report.damage) for report in verify(series)] == [1, 1, 1]
    extend_snapshot(series, {SPEC: (rows_of(3, block) for block in range(SPEC.blocks))}, version=3, full=True)
    assert Snapshot.last_good(series).generation == 3


def test_where_nothing_can_be_used_all_damage_is_named(series: Path) -> None:
    for generation in range(3):
        os.truncate(manifest_of(series, generation), 10)
    with pytest.raises(SnapshotError, match=r"no generation can be.*manifest-000002.*manifest-000001.*manifest\.json"):
        Snapshot.open(series)
    assert write_generation(series, 3).generation == 3  # every block anew
    check_whole(Snapshot.open(series))
    assert len(files_of(series, 3)) == 1
    assert generations(open_store(series)) == [0, 1, 2, 3]
