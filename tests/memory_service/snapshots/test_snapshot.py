from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import memory_service.snapshots.writer as writer_module
from memory_service import LocalMemory, RowFormat, Snapshot, SnapshotError, TableSpec, UnknownTable, write_snapshot

from .series import reseal

MakeSpec = Callable[..., TableSpec]
MakePacked = Callable[..., np.ndarray]


def read_all(uri: Path | str, name: str = "engram.1") -> np.ndarray:
    snapshot = Snapshot.open(uri)
    wanted = range(snapshot.specs[name].blocks)
    blocks = {block: rows.copy() for block, rows in snapshot.read_blocks(name, wanted)}
    return np.concatenate([blocks[block] for block in sorted(blocks)])


def block_file(snapshot: Path) -> Path:
    """The one block file of a small snapshot."""
    [path] = (snapshot / "engram.1").iterdir()
    return path


def name_of(path: Path) -> str:
    return re.escape(f"{path.parent.name}/{path.name}")


def flip_bit(path: Path, offset: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


@contextmanager
def allowing_error_about(file: str) -> Iterator[None]:
    try:
        yield
    except SnapshotError as error:
        if file not in str(error):
            raise


@pytest.mark.parametrize("row_format", list(RowFormat))
def test_what_is_written_is_read_to_the_bit(
    tmp_path: Path, make_spec: MakeSpec, make_packed: MakePacked, row_format: RowFormat
) -> None:
    specs = [make_spec(name, row_format=row_format, layer=layer) for layer, name in ((1, "engram.1"), (5, "engram.5"))]
    tables = {spec: make_packed(spec, spec.layer) for spec in specs}
    write_snapshot(tmp_path / "memory", tables)
    assert Snapshot.open(tmp_path / "memory").specs == {spec.name: spec for spec in specs}
    for spec, packed in tables.items():
        np.testing.assert_array_equal(read_all(tmp_path / "memory", spec.name), packed)


def test_a_file_uri_is_a_path(snapshot: Path, packed: np.ndarray) -> None:
    np.testing.assert_array_equal(read_all(snapshot.as_uri()), packed)


def test_blocks_are_spread_over_files_and_read_selectively(
    tmp_path: Path, spec: TableSpec, packed: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "FILE_BYTES", 5 * spec.block_rows * spec.row_bytes)
    write_snapshot(tmp_path / "memory", {spec: packed})
    files = sorted((tmp_path / "memory" / "engram.1").iterdir())
    assert [path.name[-11:] for path in files] == [f"{number:05d}.arrow" for number in range(6)]
    opened = Snapshot.open(tmp_path / "memory")
    files[1].unlink()
    blocks = dict(opened.read_blocks("engram.1", [12, 0, 25]))
    assert sorted(blocks) == [0, 12, 25]


def test_block_files_can_be_read_by_plain_arrow(snapshot: Path, packed: np.ndarray) -> None:
    with pa.memory_map(str(block_file(snapshot))) as source:
        table = pa.ipc.open_file(source).read_all()
    assert table.schema == pa.schema([pa.field("row", pa.binary(128), nullable=False)])
    assert b"".join(table["row"].to_pylist()) == packed.tobytes()


def test_a_table_is_drawn_block_by_block(tmp_path: Path, spec: TableSpec, packed: np.ndarray) -> None:
    drawn = []

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, spec.rows, 64):
            written = sum(path.stat().st_size for path in (tmp_path / "memory").rglob("*.arrow"))
            drawn.append(written)
            yield packed[start : start + 64]

    write_snapshot(tmp_path / "memory", {spec: blocks()})
    np.testing.assert_array_equal(read_all(tmp_path / "memory"), packed)
    assert drawn[-1] > 20 * 64 * 128  # earlier blocks had left this process when the last one was drawn


@pytest.mark.parametrize("change", ["short", "long", "dtype", "width"])
def test_a_source_of_the_wrong_shape_is_refused_and_leaves_no_snapshot(
    tmp_path: Path, spec: TableSpec, packed: np.ndarray, change: str
) -> None:
    source = {
        "short": packed[:-60],
        "long": np.concatenate([packed, packed]),
        "dtype": packed.astype(np.int16),
        "width": packed[:, 1:],
    }[change]
    with pytest.raises(ValueError, match=r"engram\.1"):
        write_snapshot(tmp_path / "memory", {spec: source})
    with pytest.raises(SnapshotError, match="no snapshot at"):
        Snapshot.open(tmp_path / "memory")


def test_a_snapshot_is_never_overwritten_by_another(snapshot: Path, spec: TableSpec, packed: np.ndarray) -> None:
    with pytest.raises(SnapshotError, match="already holds a snapshot"):
        write_snapshot(snapshot, {spec: 255 - packed})
    np.testing.assert_array_equal(read_all(snapshot), packed)


def test_a_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="no such directory"):
        Snapshot.open(tmp_path / "nowhere")


def test_a_uri_of_an_unknown_file_system_is_named() -> None:
    with pytest.raises(SnapshotError, match="nosuchfs"):
        Snapshot.open("nosuchfs://bucket/memory")


def test_a_snapshot_without_a_manifest_was_never_finished(snapshot: Path) -> None:
    (snapshot / "manifest.json").unlink()
    with pytest.raises(SnapshotError, match="never finished"):
        Snapshot.open(snapshot)


def test_a_table_the_snapshot_lacks_is_named(snapshot: Path) -> None:
    with pytest.raises(UnknownTable, match=r"engram\.7.*engram\.1"):
        next(Snapshot.open(snapshot).read_blocks("engram.7", [0]))


def test_a_missing_block_file_is_named_when_loading(snapshot: Path) -> None:
    path = block_file(snapshot)
    path.unlink()
    with pytest.raises(SnapshotError, match=rf"file {name_of(path)} .* is missing"):
        LocalMemory.load(snapshot)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.999])
def test_a_truncated_block_file_is_named_when_loading(snapshot: Path, keep: float) -> None:
    path = block_file(snapshot)
    size = path.stat().st_size
    os.truncate(path, int(size * keep))
    with pytest.raises(SnapshotError, match=rf"file {name_of(path)} .* has {int(size * keep)} bytes, not {size}"):
        LocalMemory.load(snapshot)


def test_a_flipped_bit_names_file_table_and_block(snapshot: Path, packed: np.ndarray) -> None:
    path = block_file(snapshot)
    offset = path.read_bytes().index(packed[10 * 64].tobytes())
    flip_bit(path, offset + 77, 3)
    with pytest.raises(SnapshotError, match=rf"{name_of(path)}.*'engram\.1'.*block 10: the checksum"):
        LocalMemory.load(snapshot)


def test_blocks_with_swapped_rows_are_found_by_checksum(
    tmp_path: Path, spec: TableSpec, packed: np.ndarray, snapshot: Path
) -> None:
    swapped = packed.copy()
    swapped[:64], swapped[64:128] = packed[64:128], packed[:64]
    write_snapshot(tmp_path / "other", {spec: swapped})
    block_file(tmp_path / "other").replace(block_file(snapshot))
    with pytest.raises(SnapshotError, match="block 0"):
        LocalMemory.load(snapshot)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_an_error_or_harmless(snapshot: Path, packed: np.ndarray, where: float, bit: int) -> None:
    """Arrow pads its headers; a bit there means nothing. No flip may crash, or change a row."""
    path = block_file(snapshot)
    flip_bit(path, int(where * path.stat().st_size), bit)
    try:
        with allowing_error_about(path.name):
            np.testing.assert_array_equal(read_all(snapshot), packed)
    finally:
        flip_bit(path, int(where * path.stat().st_size), bit)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_in_the_manifest_is_named(snapshot: Path, where: float, bit: int) -> None:
    path = snapshot / "manifest.json"
    offset = int(where * path.stat().st_size)
    flip_bit(path, offset, bit)
    try:
        with pytest.raises(SnapshotError, match=r"manifest\.json is damaged"):
            Snapshot.open(snapshot)
    finally:
        flip_bit(path, offset, bit)


def test_a_manifest_of_another_format_version_is_named(snapshot: Path) -> None:
    reseal(snapshot / "manifest.json", lambda body: body.update(version=99))
    with pytest.raises(SnapshotError, match="format version 99, this release reads 1 to 2"):
        Snapshot.open(snapshot)


@pytest.mark.parametrize("file", ["../secret", "engram.1/../../secret", "/etc/passwd"])
def test_a_manifest_cannot_point_outside_the_table_folder(snapshot: Path, file: str) -> None:
    reseal(snapshot / "manifest.json", lambda body: body["tables"][0].update(files=[[file, 1]]))
    with pytest.raises(SnapshotError, match="outside"):
        Snapshot.open(snapshot)


def test_a_manifest_must_list_every_block(snapshot: Path) -> None:
    reseal(snapshot / "manifest.json", lambda body: body["tables"][0]["blocks"].pop())
    with pytest.raises(SnapshotError, match="26 blocks, 25 are listed"):
        Snapshot.open(snapshot)
