"""Manifests with a valid checksum and impossible content are passed over, and table, field and value are named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import memory_service.snapshots.manifest as manifest_module
from memory_service import InvalidRequest, Snapshot, SnapshotError, write_snapshot
from memory_service.protocol.messages import blocks_from_proto, blocks_to_proto
from memory_service.snapshots.manifest import MAX_BYTES, BlockEntry, TableEntry, parse_manifest, render_manifest
from memory_service.snapshots.upkeep import verify
from memory_service.tables.random_tables import random_blocks
from memory_service.tables.spec import canonical_json

from .series import CHANGING, SPEC, check_whole, manifest_of, reseal, seal, write_generation

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def series(tmp_path: Path) -> Path:
    for generation in range(2):
        write_generation(tmp_path, generation)
    return tmp_path


def check_passed_over(series: Path, words: str) -> None:
    """Generation 1 is damaged, which is named as such, and generation 0 loads."""
    snapshot = Snapshot.open(series)
    assert snapshot.generation == 0
    check_whole(snapshot)
    [sentence] = snapshot.damage
    assert sentence.startswith("generation 1: ")
    assert words in sentence
    assert len(sentence) < 1000
    with pytest.raises(SnapshotError) as error:
        Snapshot.open(f"{series}?generation=1")
    assert words in str(error.value)
    assert [len(report.damage) for report in verify(series)] == [0, 1]


def table(key: str, value: object) -> Change:
    return lambda body: body["tables"][0].update({key: value})


def spec(key: str, value: object) -> Change:
    return lambda body: body["tables"][0]["spec"].update({key: value})


def part(kind: str, column: int, value: object, row: int = 3) -> Change:
    """Change a column of one of a table's blocks or files."""
    return lambda body: body["tables"][0][kind][row].__setitem__(column, value)


def again(change: Change = lambda values: None) -> Change:
    """List the table once more, in some other way."""

    def change_body(body: dict[str, Any]) -> None:
        copy = json.loads(json.dumps(body["tables"][0]))
        change(copy)
        body["tables"].append(copy)

    return change_body


def renamed(name: str) -> Change:
    def change(values: dict[str, Any]) -> None:
        values["spec"]["name"] = name
        values["files"] = [[file.replace(SPEC.name, name), size] for file, size in values["files"]]

    return change


IMPOSSIBLE = "is not possible"
BLOCK, FILE = "table 'engram.1' block 3: ", "table 'engram.1' file 0: "
IMPOSSIBLE_VALUES: list[tuple[Change, str]] = [
    *[(part("files", 0, v, 0), f"{FILE}file={v!r} {IMPOSSIBLE}") for v in (5, None, "", [], "engram.1", True)],
    *[(part("files", 1, v, 0), f"{FILE}bytes={v!r} {IMPOSSIBLE}") for v in ("12", None, -1, 2**70, 0.5, True, [])],
    *[(part("blocks", 0, v), f"{BLOCK}file={v!r} {IMPOSSIBLE}") for v in ("x", None, -1, 2, 2**70, 0.5, True, [])],
    *[(part("blocks", 1, v), f"{BLOCK}batch={v!r} {IMPOSSIBLE}") for v in ("x", None, -1, 2**70, 0.5, True, [])],
    *[(part("blocks", 2, v), f"{BLOCK}rows={v!r} {IMPOSSIBLE}") for v in ("x", None, -1, 0, 5, 2**70, 0.5, True)],
    *[(part("blocks", 3, v), f"{BLOCK}digest={v!r} {IMPOSSIBLE}") for v in (5, None, "", "zz" * 16, "AB" * 16, [])],
    *[
        (table("version", v), f"table 'engram.1': version={v!r} {IMPOSSIBLE}")
        for v in ("x", None, -1, 2**70, 0.5, True)
    ],
    *[(table("blocks", v), f"table 'engram.1': blocks={v!r} {IMPOSSIBLE}: give a list") for v in (None, 5, "x", {})],
    *[(table("files", v), f"table 'engram.1': files={v!r} {IMPOSSIBLE}: give a list") for v in (None, 5, "x", {})],
    *[
        (table("blocks", [v]), f"block 0 is {v!r}: give [file, batch, rows, digest]")
        for v in (None, 5, "abcd", [1], {})
    ],
    *[(table("files", [v]), f"file 0 is {v!r}: give [file, bytes]") for v in (None, 5, "ab", [1], {})],
    *[(table("spec", v), f"table spec is {v!r}: give an object") for v in (None, 5, "x", [])],
    *[(spec("name", v), f"name={v!r} {IMPOSSIBLE}") for v in (5, None, "", "..", "a/b", "a\\b", "\ud800")],
    *[(spec("dim", v), f"table 'engram.1': dim={v!r} {IMPOSSIBLE}") for v in (3.2e12, 3_200_000_000_000, "64", None)],
    (spec("column_rows", [2**45] * 4), "table 'engram.1' has 549755813888 blocks, 32 are listed"),
    (spec("column_rows", [2**47] * 4), f"table 'engram.1': column_rows={(2**47,) * 4} {IMPOSSIBLE}"),
    (spec("block_rows", 2**31), f"table 'engram.1': dim=64 {IMPOSSIBLE}"),
    (spec("row_format", 5), f"table 'engram.1': row_format=5 {IMPOSSIBLE}"),
    (spec("colour", "red"), "unknown table spec fields ['colour']"),
    (again(), "the tables ['engram.1', 'engram.1'] would share a folder"),
    (again(renamed("Engram.1")), "the tables ['engram.1', 'Engram.1'] would share a folder"),
    (again(renamed("manifest.json")), "table 'manifest.json' has the name of a manifest"),
    (lambda body: body["tables"][0]["files"].append(body["tables"][0]["files"][0]), "it is listed twice"),
    (
        lambda body: body["tables"][0]["blocks"].__setitem__(2, body["tables"][0]["blocks"][3]),
        "table 'engram.1' has 2 blocks in batch=3 of engram.1/000000-",
    ),
    (lambda body: body["tables"][0]["blocks"].extend([None] * 5), "block 32 is None: give [file, batch, rows, digest]"),
    (lambda body: body["tables"][0]["blocks"].pop(), "table 'engram.1' has 32 blocks, 31 are listed"),
    (lambda body: body["tables"][0].pop("version"), "table entry lacks the fields ['version']"),
    (lambda body: body["tables"][0].update(colour="red"), "unknown table entry fields ['colour']"),
    (lambda body: body.update(colour="red"), "unknown manifest fields ['colour']"),
    *[(lambda body, v=v: body.update(tables=v), f"manifest: tables={v!r} {IMPOSSIBLE}") for v in (None, 5, "x", {})],
    *[(lambda body, v=v: body.update(tables=[v]), f"table entry is {v!r}: give an object") for v in (None, 5, "x", [])],
    *[
        (lambda body, v=v: body.update(version=v), f"has format version {v!r}")
        for v in (3, 0, "2", None, True, 2.0, [])
    ],
]


@pytest.mark.parametrize(("change", "words"), IMPOSSIBLE_VALUES, ids=[words for _, words in IMPOSSIBLE_VALUES])
def test_an_impossible_value_is_damage_that_names_table_and_field(series: Path, change: Change, words: str) -> None:
    reseal(manifest_of(series, 1), change)
    check_passed_over(series, words)


@pytest.mark.parametrize(
    "file",
    [
        *("../secret.arrow", "engram.1/../secret.arrow", "/etc/secret.arrow", "engram.1//secret.arrow", "./a.arrow"),
        *("engram.1/a/b.arrow", "engram.1\\secret.arrow", "engram.1/..\\secret.arrow", "C:\\secret.arrow"),
        *("engram.1/a\0.arrow", "engram.1/a\n.arrow", "engram.1/\ud800.arrow", "engram.1/\u00e9.arrow"),
        *("engram.1/secret", "engram.1/.arrow", "engram.1/.secret.arrow", "engram.1/notes.txt"),
    ],
)
def test_a_file_name_that_leaves_the_table_folder_is_refused(series: Path, file: str) -> None:
    reseal(manifest_of(series, 1), part("files", 0, file, 0))
    check_passed_over(series, f"{FILE}file={file!r} is not possible: name an .arrow file in the folder of its table")


def test_a_file_in_the_folder_of_another_table_is_refused(series: Path) -> None:
    reseal(manifest_of(series, 1), part("files", 0, "engram.2/00000.arrow", 0))
    check_passed_over(series, "table 'engram.1' cannot have the file 'engram.2/00000.arrow': it lies outside")


def test_files_that_differ_in_case_only_are_refused(series: Path) -> None:
    def change(body: dict[str, Any]) -> None:
        values = body["tables"][0]
        values["files"] = [["engram.1/a.arrow", 1], ["engram.1/A.arrow", 1]]
        for block, item in enumerate(values["blocks"]):
            item[0] = block % 2

    reseal(manifest_of(series, 1), change)
    check_passed_over(
        series, "the files ['engram.1/A.arrow', 'engram.1/a.arrow'], which some systems cannot tell apart"
    )


def test_a_table_that_its_files_cannot_hold_is_refused_before_it_is_read(series: Path) -> None:
    """A spec and blocks that agree, over files a hundredth of the size."""
    reseal(manifest_of(series, 1), lambda body: body["tables"][0]["spec"].update(dim=6400))
    snapshot = Snapshot.open(series)
    assert snapshot.generation == 0
    needed = sum(SPEC.block_length(block) for block in CHANGING) * 12800
    assert any(f"bytes, its blocks have {needed}" in sentence for sentence in snapshot.damage)


def test_verify_reads_shared_blocks_again_where_rows_are_said_to_be_narrower(series: Path) -> None:
    """The entries are those of generation 0, in which they are whole."""
    reseal(manifest_of(series, 1), lambda body: body["tables"][0]["spec"].update(dim=32))
    assert [bool(report.damage) for report in verify(series)] == [False, True]


def body_with(replaced: bytes, by: bytes) -> Callable[[bytes], bytes]:
    def change(body: bytes) -> bytes:
        assert replaced in body
        return body.replace(replaced, by, 1)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda body: b"[" * 200_000, "nested too deeply"),
        (lambda body: b'{"a":' * 200_000, "nested too deeply"),
        (body_with(b'"version":1}', b'"version":1,"version":1}'), "the key 'version' occurs twice"),
        (body_with(b'"version":1}', b'"version":1,"version":0}'), "the key 'version' occurs twice"),
        (body_with(b'"tables":', b'"tables":[],"tables":'), "the key 'tables' occurs twice"),
        (body_with(b'"dim":64', b'"dim":NaN'), "NaN is not a number"),
        (body_with(b'"dim":64', b'"dim":1e400'), "dim=inf is not possible"),
        (body_with(b'"engram.1"', b'"\xff"'), "utf-8"),
        (lambda body: b"", "Expecting value"),
        (lambda body: b"null", "format version None"),
        (lambda body: b"[]", "format version None"),
    ],
    ids=range(11),
)
def test_json_that_cannot_be_read_safely_is_named(series: Path, change: Callable[[bytes], bytes], words: str) -> None:
    path = manifest_of(series, 1)
    seal(path, change(canonical_json(json.loads(path.read_bytes())["body"])))
    check_passed_over(series, words)


@pytest.mark.parametrize(
    "content", [b'{"body":' + b"[" * 200_000, b"[" * 200_000, b'{"body":{},"checksum":', b"{}", b""]
)
def test_nothing_is_parsed_before_the_checksum_matches(
    series: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest_of(series, 1).write_bytes(content)
    monkeypatch.setattr(manifest_module, "parse_json", lambda _: pytest.fail("parsed"))
    with pytest.raises(SnapshotError, match=r"manifest-000001\.json is damaged, its checksum does not match"):
        Snapshot.open(f"{series}?generation=1")


def test_a_huge_manifest_is_not_read(series: Path) -> None:
    path = manifest_of(series, 1)
    os.truncate(path, 1 << 40)  # a hole, which takes no room on the disk
    check_passed_over(series, f"manifest-000001.json is damaged, it has {1 << 40} bytes, more than {MAX_BYTES}")


def test_a_manifest_too_large_to_be_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "MAX_BYTES", 1000)
    with pytest.raises(SnapshotError, match=r"a manifest of \d+ bytes exceeds 1000: use a larger block_rows"):
        write_generation(tmp_path, 0)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_after_the_last_number_no_generation_is_written(series: Path) -> None:
    (series / f"manifest-{'9' * 18}.json").write_bytes(b"precious")
    with pytest.raises(SnapshotError, match=rf"no number is left after manifest-{'9' * 18}\.json: remove that file"):
        write_generation(series, 2)
    check_whole(Snapshot.open(series))


@pytest.mark.parametrize("names", [("engram.1", "Engram.1"), ("manifest.json",), ("manifest-000001.json",)])
def test_tables_that_cannot_have_a_folder_each_are_not_written(tmp_path: Path, names: tuple[str, ...]) -> None:
    tables = {replace(SPEC, name=name): random_blocks(SPEC) for name in names}
    with pytest.raises(ValueError, match=names[-1]):
        write_snapshot(tmp_path / "memory", tables)
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_is_read_as_it_was_written(series: Path) -> None:
    tables = Snapshot.open(series).tables
    assert parse_manifest(render_manifest(list(tables.values())), str(series), "manifest.json") == tables


@pytest.mark.parametrize("version", ["x", -1, 0.5, True, None])
def test_a_version_that_cannot_be_is_refused_when_written(tmp_path: Path, version: Any) -> None:
    with pytest.raises(ValueError, match=r"table 'engram\.1': version="):
        write_snapshot(tmp_path, {SPEC: random_blocks(SPEC)}, version)
    with pytest.raises(SnapshotError, match="no snapshot at"):
        Snapshot.open(tmp_path)


def test_a_block_entry_from_the_wire_is_checked(series: Path) -> None:
    entries = dict(enumerate(Snapshot.open(series).table(SPEC.name).blocks))
    messages = list(blocks_to_proto(entries))
    assert blocks_from_proto(messages) == entries
    messages[3].file = "../secret.arrow"
    with pytest.raises(InvalidRequest, match=r"not a block entry: file='\.\./secret\.arrow' is not possible"):
        blocks_from_proto(messages)


def test_entries_of_other_blocks_make_no_table(series: Path) -> None:
    entry = Snapshot.open(series).table(SPEC.name)
    with pytest.raises(ValueError, match=r"table 'engram\.1' block 0: rows=255 is not possible: this block has 256"):
        TableEntry(SPEC, 0, (BlockEntry("engram.1/a.arrow", 0, 255, "0" * 32), *entry.blocks[1:]))
