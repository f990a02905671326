"""`prune` and failed writers delete only files that the snapshot has provably written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from memory_service import Snapshot, SnapshotError, extend_snapshot
from memory_service.snapshots.ownership import is_own
from memory_service.snapshots.snapshot import generations
from memory_service.snapshots.store import Store, open_store
from memory_service.snapshots.upkeep import prune, verify
from memory_service.snapshots.writer import NewGeneration, write_blocks

from .series import SPEC, check_whole, files_of, manifest_of, reseal, rows_of, write_generation

ROOT = Path(__file__).parents[3]
ALIKE = "000000-0a1b2c3d-00000.arrow"


@pytest.fixture
def series(tmp_path: Path) -> Path:
    for generation in range(4):
        write_generation(tmp_path / "memory", generation)
    return tmp_path / "memory"


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def arrow_of(schema: pa.Schema) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema):
        pass
    return sink.getvalue().to_pybytes()


def copy_of_a_block_file(series: Path) -> bytes:
    return files_of(series, 1)[0].read_bytes()


FOREIGN: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "notes in the table's folder": ("engram.1/notes.txt", lambda series: b"precious"),
    "notes in the directory": ("notes.txt", lambda series: b"precious"),
    "notes named alike": ("engram.1/000000-0a1b2c3d-notes.txt", lambda series: b"precious"),
    "bytes named as a block file": (f"engram.1/{ALIKE}", lambda series: b"precious"),
    "bytes that begin as Arrow": (f"engram.1/{ALIKE}", lambda series: b"ARROW1\0\0precious"),
    "a block file of before without a manifest": ("engram.1/00000.arrow", lambda series: b"ARROW1\0\0"),
    "an Arrow file of other columns": (f"engram.1/{ALIKE}", lambda s: arrow_of(pa.schema([("price", pa.float64())]))),
    "an Arrow file of rows": (f"engram.1/{ALIKE}", lambda s: arrow_of(pa.schema([("row", pa.binary(128))]))),
    "a copy of a block file, named alike": (f"engram.1/{ALIKE}", copy_of_a_block_file),
    "a copy of a block file, renamed": ("engram.1/000001-backup.arrow", copy_of_a_block_file),
    "bytes named as an unsealed manifest": ("000000-0a1b2c3d-manifest.tmp", lambda series: b"precious"),
    "something else beside an unsealed manifest": ("000000-0a1b2c3d-other.tmp", lambda series: b'{"body":{"tables":['),
    "in a folder of another table": (f"engram.7/{ALIKE}", lambda series: b"precious"),
    "in a folder within": (f"engram.1/within/{ALIKE}", lambda series: b"precious"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_prune_deletes_no_file_of_another_program(series: Path, what: str) -> None:
    name, make = FOREIGN[what]
    path, content = series / name, make(series)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    deleted = prune(series, 1)
    assert [name for name in deleted if "manifest" in name] == [manifest_of(series, n).name for n in range(3)]
    assert len(deleted) == 5  # of generation 0, the file has blocks that all share
    assert path.read_bytes() == content
    check_whole(Snapshot.last_good(series))


NOT_OURS = [b'{"name": "my web page", "icons": []}', b'{"body":1}', b"\x89PNG\r\n", b'{ "body": {"tables": []}}']


@pytest.mark.parametrize("content", NOT_OURS)
def test_prune_deletes_no_manifest_of_something_else(series: Path, content: bytes) -> None:
    """Many programs have files named manifest.json."""
    prune(series, 3)
    manifest_of(series, 0).write_bytes(content)
    expected = ["manifest-000001.json", *(f"engram.1/{path.name}" for path in files_of(series, 1))]
    assert prune(series, 2) == expected
    assert manifest_of(series, 0).read_bytes() == content
    check_whole(Snapshot.last_good(series))


@pytest.mark.parametrize("keep_bytes", [0, 10, 300, -1])
def test_prune_deletes_an_old_manifest_of_which_a_part_is_left(series: Path, keep_bytes: int) -> None:
    content = manifest_of(series, 1).read_bytes()
    manifest_of(series, 1).write_bytes(content[:keep_bytes])
    prune(series, 1)
    assert generations(open_store(series)) == [3]


@pytest.fixture
def linked(series: Path, tmp_path: Path) -> Path:
    """The folder of the table, moved to another place, with a link to it."""
    shutil.move(series / SPEC.name, tmp_path / "elsewhere")
    (series / SPEC.name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "notes.txt").write_bytes(b"precious")
    return tmp_path / "elsewhere"


def test_prune_deletes_nothing_behind_a_linked_table_folder(series: Path, linked: Path) -> None:
    before = contents(linked)
    assert prune(series, 1) == [manifest_of(series, number).name for number in range(3)]
    assert contents(linked) == before
    check_whole(Snapshot.last_good(series))


def test_a_linked_table_folder_is_read_but_not_written_to(series: Path, linked: Path) -> None:
    before = contents(linked)
    check_whole(Snapshot.last_good(series))
    with pytest.raises(SnapshotError, match=r"engram\.1 is a symbolic link: put a folder of the snapshot's own"):
        write_generation(series, 4)
    assert contents(linked) == before
    assert generations(open_store(series)) == [0, 1, 2, 3]


def test_of_two_snapshots_that_share_a_folder_the_link_deletes_nothing(series: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / SPEC.name).symlink_to(series / SPEC.name)
    for number in (0, 3):
        shutil.copy(manifest_of(series, number), other)
    assert prune(other, 1) == ["manifest.json"]
    assert [report.damage for report in verify(series)] == [()] * 4
    check_whole(Snapshot.last_good(other))


def test_prune_leaves_a_linked_file_and_what_it_leads_to(
    series: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [path] = files_of(series, 1)
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    content = path.read_bytes()
    assert f"engram.1/{path.name}" not in prune(series, 1)
    assert path.is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() == content
    assert (
        f"engram.1/{path.name} is left alone: it is a link, or does not have the content that was written"
        in caplog.text
    )


def test_a_generation_whose_manifest_is_a_link_keeps_its_files(series: Path, tmp_path: Path) -> None:
    shutil.move(manifest_of(series, 1), tmp_path / "elsewhere")
    manifest_of(series, 1).symlink_to(tmp_path / "elsewhere")
    prune(series, 1)
    assert generations(open_store(series)) == [1, 3]
    check_whole(Snapshot.open(f"{series}?generation=1"))
    assert (tmp_path / "elsewhere").exists()


def test_a_manifest_cannot_make_prune_delete_a_foreign_file(series: Path) -> None:
    path = series / SPEC.name / "precious.arrow"
    path.write_bytes(arrow_of(pa.schema([("price", pa.float64())])))

    def claim(body: dict[str, Any]) -> None:
        files = body["tables"][0]["files"]
        files[0] = [f"engram.1/{path.name}", path.stat().st_size]

    reseal(manifest_of(series, 1), claim)
    before = path.read_bytes()
    prune(series, 1)
    assert path.read_bytes() == before


def test_a_folder_that_becomes_a_link_meanwhile_is_not_followed(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swap_after(store: Store, path: str, *of: Any) -> bool:
        own = is_own(store, path, *of)
        if path.startswith(SPEC.name) and not (series / SPEC.name).is_symlink():
            shutil.move(series / SPEC.name, tmp_path / "elsewhere")
            (series / SPEC.name).symlink_to(tmp_path / "elsewhere")
        return own

    monkeypatch.setattr("memory_service.snapshots.upkeep.is_own", swap_after)
    before = contents(series / SPEC.name)
    with pytest.raises(SnapshotError, match=r"engram\.1 is a symbolic link"):
        prune(series, 1)
    assert contents(tmp_path / "elsewhere") == before


def test_a_writer_that_fails_deletes_nothing_behind_a_link(series: Path, tmp_path: Path) -> None:
    def write_then_fail() -> None:
        with NewGeneration(series, [SPEC]) as new:
            write_blocks(new.store, SPEC, [(0, rows_of(9, 0))], new.prefix, {})
            shutil.move(series / SPEC.name, tmp_path / "elsewhere")
            (series / SPEC.name).symlink_to(tmp_path / "elsewhere")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_then_fail()
    assert len(list((tmp_path / "elsewhere").glob("000004-*"))) == 1


def test_files_whose_manifest_is_gone_are_deleted_by_the_next_prune(series: Path) -> None:
    for number in range(3):
        manifest_of(series, number).unlink()  # as far as a prune that was interrupted came
    left = [f"engram.1/{path.name}" for number in (1, 2) for path in files_of(series, number)]
    assert prune(series, 1) == left


def test_files_of_an_earlier_release_are_deleted_if_a_manifest_names_them(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models" / "tiny-code" / "memory", tmp_path / "memory")
    old = Snapshot.open(tmp_path / "memory")
    tables = {
        spec: np.concatenate([rows.copy() for _, rows in old.read_blocks(name, range(spec.blocks))])
        for name, spec in old.specs.items()
    }
    extend_snapshot(tmp_path / "memory", tables, full=True)
    assert prune(tmp_path / "memory", 1) == ["manifest.json", "engram.1/00000.arrow", "engram.4/00000.arrow"]
    assert Snapshot.last_good(tmp_path / "memory").generation == 1
