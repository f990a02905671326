"""Snapshots on a store that is no local directory: read without mapping, sealed without renaming."""

from __future__ import annotations

import uuid

import pytest

from memory_service import LocalMemory, Snapshot, SnapshotError
from memory_service.snapshots.store import LocalStore, open_store
from memory_service.snapshots.upkeep import prune, verify

from .series import CHANGING, SPEC, check_whole, write_generation


@pytest.fixture
def uri() -> str:
    """A directory of fsspec's in-memory file system, which lives as long as this process."""
    return f"fsspec+memory://{uuid.uuid4().hex}/memory"


def test_generations_on_another_store(uri: str) -> None:
    assert not isinstance(open_store(uri), LocalStore)
    for generation in range(3):
        write_generation(uri, generation)
    check_whole(Snapshot.open(uri))
    check_whole(Snapshot.open(f"{uri}?generation=1"))
    assert [report.new_blocks for report in verify(uri)] == [SPEC.blocks, len(CHANGING), len(CHANGING)]
    assert LocalMemory.load(uri).specs == {SPEC.name: SPEC}
    prune(uri, 1)
    assert verify(uri)[0].generation == 2
    check_whole(Snapshot.last_good(uri))


def test_damage_on_another_store(uri: str) -> None:
    write_generation(uri, 0)
    file = Snapshot.open(uri).table(SPEC.name).files[0]
    store = open_store(uri)
    with store.reading(file) as source:
        content = bytearray(source.read())
    content[len(content) // 2] ^= 4
    with store.writing(file) as sink:
        sink.write(bytes(content))
    with pytest.raises(SnapshotError, match=file):
        check_whole(Snapshot.open(uri))
    store.delete(file)
    with pytest.raises(SnapshotError, match=f"{file} of table 'engram.1' is missing"):
        Snapshot.open(uri)


def test_a_file_is_created_once(uri: str) -> None:
    store = open_store(uri)
    store.create_whole("manifest.json", b"1", "x.tmp")
    with pytest.raises(SnapshotError, match=r"manifest\.json exists already"):
        store.create_whole("manifest.json", b"2", "x.tmp")
    assert list(store.files()) == ["manifest.json"]


def test_nothing_there(uri: str) -> None:
    with pytest.raises(SnapshotError, match="no such directory"):
        Snapshot.open(uri)


@pytest.mark.parametrize("links", [True, False])
def test_a_local_file_is_created_once(tmp_path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no hard links here")

    if not links:
        monkeypatch.setattr("os.link", refuse)
    store = open_store(tmp_path)
    store.create_whole("manifest.json", b"1", "x.tmp")
    with pytest.raises(SnapshotError, match=r"manifest\.json exists already"):
        store.create_whole("manifest.json", b"2", "x.tmp")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"manifest.json": b"1"}
