"""Stores: object stores, and the links and special files that a local directory refuses to touch."""

from __future__ import annotations

import errno
import os
import socket
import uuid
from pathlib import Path

import pytest

from memory_service import LocalMemory, Snapshot, SnapshotError
from memory_service.snapshots.store import LocalStore, open_store
from memory_service.snapshots.upkeep import prune, verify

from .series import CHANGING, SPEC, check_whole, files_of, write_generation


@pytest.fixture
def uri() -> str:
    """A directory of fsspec's in-memory file system, which lives as long as this process."""
    return f"fsspec+memory://{uuid.uuid4().hex}/memory"


def test_generations_work_alike_on_an_object_store(uri: str) -> None:
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


def test_damage_on_an_object_store_names_the_file(uri: str) -> None:
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


def test_a_file_on_an_object_store_is_created_once(uri: str) -> None:
    store = open_store(uri)
    store.create_whole("manifest.json", b"1", "x.tmp")
    with pytest.raises(SnapshotError, match=r"manifest\.json exists already"):
        store.create_whole("manifest.json", b"2", "x.tmp")
    assert list(store.files()) == ["manifest.json"]


def test_a_missing_directory_on_an_object_store_is_named(uri: str) -> None:
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


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder outside the snapshot, with a file."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.arrow").write_bytes(b"precious")
    return tmp_path / "elsewhere"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """A store of an empty directory."""
    (tmp_path / "memory").mkdir()
    store = open_store(tmp_path / "memory")
    assert isinstance(store, LocalStore)
    return store


def test_a_file_that_exists_is_never_written_to(store: LocalStore, tmp_path: Path) -> None:
    with store.writing("engram.1/a.arrow") as sink:
        sink.write(b"first")
    with (
        pytest.raises(SnapshotError, match=r"cannot use engram\.1/a\.arrow: .*exists"),
        store.writing("engram.1/a.arrow"),
    ):
        pytest.fail("opened")
    assert (tmp_path / "memory" / "engram.1" / "a.arrow").read_bytes() == b"first"


def test_a_file_that_cannot_be_written_whole_is_removed(store: LocalStore, tmp_path: Path) -> None:
    def write_half() -> None:
        with store.writing("engram.1/a.arrow") as sink:
            sink.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert list((tmp_path / "memory" / "engram.1").iterdir()) == []


@pytest.mark.parametrize("to", ["file", "nowhere"])
def test_nothing_is_written_through_a_linked_file(store: LocalStore, tmp_path: Path, elsewhere: Path, to: str) -> None:
    target = elsewhere / ("a.arrow" if to == "file" else "b.arrow")
    (tmp_path / "memory" / "engram.1").mkdir()
    for name in ("engram.1/a.arrow", "manifest.json", "x.tmp"):
        (tmp_path / "memory" / name).symlink_to(target)
    with pytest.raises(SnapshotError, match="exists"), store.writing("engram.1/a.arrow"):
        pytest.fail("opened")
    with pytest.raises(SnapshotError, match=r"manifest\.json exists already"):
        store.create_whole("manifest.json", b"1", "y.tmp")
    with pytest.raises(SnapshotError, match=r"x\.tmp: .*exists"):
        store.create_whole("manifest-000001.json", b"1", "x.tmp")
    assert [path.read_bytes() for path in elsewhere.iterdir()] == [b"precious"]
    assert (tmp_path / "memory" / "x.tmp").is_symlink()


def test_nothing_is_written_or_deleted_in_a_linked_folder(store: LocalStore, tmp_path: Path, elsewhere: Path) -> None:
    (tmp_path / "memory" / "engram.1").symlink_to(elsewhere)
    with pytest.raises(SnapshotError, match=r"engram\.1 is a symbolic link: put a folder"), store.writing("engram.1/b"):
        pytest.fail("opened")
    with pytest.raises(SnapshotError, match=r"engram\.1 is a symbolic link: put a folder"):
        store.delete("engram.1/a.arrow")
    assert [path.read_bytes() for path in elsewhere.iterdir()] == [b"precious"]


def test_only_files_of_its_own_are_deleted(store: LocalStore, tmp_path: Path, elsewhere: Path) -> None:
    folder = tmp_path / "memory" / "engram.1"
    (folder / "directory").mkdir(parents=True)
    (folder / "link").symlink_to(elsewhere / "a.arrow")
    (folder / "file").touch()
    for name in ("directory", "link"):
        with pytest.raises(SnapshotError, match=f"engram.1/{name}: .*not a regular file"):
            store.delete(f"engram.1/{name}")
    store.delete("engram.1/file")
    store.delete("engram.1/file")  # no error if it is gone
    store.delete("engram.2/file")
    assert sorted(path.name for path in folder.iterdir()) == ["directory", "link"]


def test_a_listing_tells_files_of_its_own_from_all_else(store: LocalStore, tmp_path: Path, elsewhere: Path) -> None:
    folder = tmp_path / "memory" / "engram.1"
    (folder / "directory").mkdir(parents=True)
    (folder / "file").write_bytes(b"123")
    (folder / "link").symlink_to(elsewhere / "a.arrow")
    (folder / "nowhere").symlink_to(elsewhere / "nothing")
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    (tmp_path / "memory" / "engram.2").symlink_to(elsewhere)
    found = store.files("engram.1") | store.files("engram.2")
    assert {path for path, file in found.items() if file.regular} == {
        *("engram.1/file", "engram.1/link", "engram.2/a.arrow")
    }
    assert {path: file.size for path, file in found.items() if file.own} == {"engram.1/file": 3}
    assert store.files("engram.3") == {}


@pytest.mark.parametrize("kind", ["pipe", "directory", "socket", "nothing", "loop"])
def test_what_is_no_regular_file_is_not_read(store: LocalStore, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "memory" / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            folder = os.open(path.parent, os.O_RDONLY)
            bound.bind(f"/proc/self/fd/{folder}/x")  # the name of a socket has a hundred characters at most
            os.close(folder)
    with pytest.raises(SnapshotError, match="cannot use x: "), store.reading("x"):
        pytest.fail("opened")


def test_what_may_not_be_read_is_passed_over_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for generation in range(3):
        write_generation(tmp_path, generation)
    forbidden = {str(tmp_path / "manifest-000002.json"), str(files_of(tmp_path, 1)[0])}

    def open_as_stranger(path: str, *arguments: int, **options: int) -> int:
        if path in forbidden:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return os_open(path, *arguments, **options)

    os_open = os.open
    monkeypatch.setattr("os.open", open_as_stranger)
    snapshot = Snapshot.last_good(tmp_path)
    assert snapshot.generation == 0
    check_whole(snapshot)
    assert "cannot use manifest-000002.json: [Errno 13] Permission denied" in snapshot.damage[0]
    assert all("Permission denied" in sentence for sentence in snapshot.damage)


def test_a_directory_that_may_not_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(SnapshotError, match=r"cannot use the directory: .*Permission denied"):
        Snapshot.open(tmp_path)


def test_names_that_are_no_text_do_no_harm(tmp_path: Path) -> None:
    write_generation(tmp_path / "memory", 0)
    for folder in (b"", b"engram.1"):
        os.close(os.open(os.path.join(os.fsencode(tmp_path / "memory"), folder, b"\xff\xfe"), os.O_CREAT | os.O_WRONLY))
    check_whole(Snapshot.last_good(tmp_path / "memory"))
    assert prune(tmp_path / "memory", 1) == []


@pytest.mark.parametrize("uri", ["a\0b", "\ud800", "file://a\0b", "fsspec+memory://\0", "file:///\ud800"])
def test_a_uri_that_no_file_system_can_have_is_named(uri: str) -> None:
    with pytest.raises(SnapshotError, match="cannot use the directory"):
        Snapshot.open(uri)


def test_a_directory_reached_by_a_link_is_as_good_as_any(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "memory").symlink_to(tmp_path / "disk")
    for generation in range(3):
        write_generation(tmp_path / "memory", generation)
    prune(tmp_path / "memory", 1)
    check_whole(Snapshot.last_good(tmp_path / "disk"))
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["engram.1", "manifest-000002.json"]
