"""The directory of a snapshot: a local path, memory-mapped and synced to disk, or any URI that pyarrow.fs knows."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from memory_service.errors import SnapshotError


@dataclass(frozen=True)
class StoredFile:
    """A file as a listing shows it."""

    size: int
    modified: float
    """Seconds since 1970 by the store's clock; 0 where it does not say."""


class Store:
    """Files below one directory, addressed by relative path with '/' between the parts. SnapshotError if it fails.

    As it stands it suits an object store, where a file appears whole once it is closed, and `create_whole` writes it
    directly: such stores have no atomic rename. On a file system in which a file can be seen half written, as on HDFS,
    the checksum of the content has to tell. Local directories are a `LocalStore`, which does better.
    """

    def __init__(self, uri: str, filesystem: fs.FileSystem, base: str) -> None:
        self.uri = uri
        self._fs = filesystem
        self._base = base.rstrip("/")

    def files(self, folder: str = "", recursive: bool = False) -> dict[str, StoredFile]:
        """The files in a folder by relative path; none if there is no such folder."""
        selector = fs.FileSelector(self._at(folder), recursive=recursive, allow_not_found=True)
        with self._naming(folder):
            found = self._fs.get_file_info(selector)
        return {self._relative(info.path): _stored(info) for info in found if info.type == fs.FileType.File}

    def is_directory(self) -> bool:
        """Whether the directory itself exists."""
        with self._naming(""):
            return self._fs.get_file_info(self._base).type == fs.FileType.Directory

    @contextlib.contextmanager
    def reading(self, path: str) -> Iterator[pa.NativeFile]:
        """Open a file for reading."""
        with self._naming(path), self._fs.open_input_file(self._at(path)) as source:
            yield source

    @contextlib.contextmanager
    def writing(self, path: str) -> Iterator[pa.NativeFile]:
        """Open a new file for writing, its folder created where needed; at the end it is there to stay."""
        with self._naming(path):
            self._fs.create_dir(self._at(path).rpartition("/")[0], recursive=True)
            with self._fs.open_output_stream(self._at(path)) as sink:
                yield sink

    def create_whole(self, path: str, content: bytes, temporary: str) -> None:
        """Write a small file that nobody may see by halves; SnapshotError if there is one of that name.

        A store without atomic rename has no use for the name `temporary`. Two writers at the same instant can both
        succeed here, and the later one's content stays.
        """
        if path in self.files():
            raise self._taken(path)
        with self.writing(path) as sink:
            sink.write(content)

    def delete(self, path: str) -> None:
        """Delete a file."""
        with self._naming(path):
            self._fs.delete_file(self._at(path))

    def _at(self, path: str) -> str:
        return f"{self._base}/{path}" if path else self._base

    def _relative(self, path: str) -> str:
        return path.removeprefix(self._base).lstrip("/")

    def _taken(self, path: str) -> SnapshotError:
        return SnapshotError(f"snapshot {self.uri}: {path} exists already: another snapshot was faster, try again")

    @contextlib.contextmanager
    def _naming(self, path: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise SnapshotError(f"snapshot {self.uri}: cannot use {path or 'the directory'}: {error}") from error


class LocalStore(Store):
    """A directory of this machine: files are memory-mapped, and on the disk before they are relied upon."""

    def __init__(self, uri: str, base: str) -> None:
        super().__init__(uri, fs.LocalFileSystem(), base)

    @contextlib.contextmanager
    def reading(self, path: str) -> Iterator[pa.NativeFile]:
        """Map a file into memory."""
        with self._naming(path), pa.memory_map(self._at(path)) as source:
            yield source

    @contextlib.contextmanager
    def writing(self, path: str) -> Iterator[pa.NativeFile]:
        """Open a new file for writing; file and folder entry are synced at the end."""
        with self._naming(path):
            _make_folder(os.path.dirname(self._at(path)))
            with self._fs.open_output_stream(self._at(path)) as sink:
                yield sink
            _sync(self._at(path))
            _sync(os.path.dirname(self._at(path)))

    def create_whole(self, path: str, content: bytes, temporary: str) -> None:
        """Write under another name, then link: the file appears whole, and for one writer only."""
        try:
            with self.writing(temporary) as sink:
                sink.write(content)
            with self._naming(path):
                self._link(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(self._at(temporary))
        with self._naming(path):
            _sync(self._base)

    def _link(self, temporary: str, path: str) -> None:
        try:
            os.link(self._at(temporary), self._at(path))
        except FileExistsError:
            raise self._taken(path) from None
        except OSError:  # a file system without hard links
            if os.path.exists(self._at(path)):
                raise self._taken(path) from None
            os.rename(self._at(temporary), self._at(path))


def open_store(uri: str | Path) -> Store:
    """The store of a path or URI; SnapshotError for a URI that pyarrow.fs cannot use."""
    text = str(uri)
    if "://" not in text:
        return LocalStore(text, os.path.abspath(text))
    try:
        filesystem, base = fs.FileSystem.from_uri(text)
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        raise SnapshotError(f"snapshot {text}: cannot use the directory: {error}") from error
    return LocalStore(text, base) if isinstance(filesystem, fs.LocalFileSystem) else Store(text, filesystem, base)


def _stored(info: fs.FileInfo) -> StoredFile:
    return StoredFile(info.size, (info.mtime_ns or 0) / 1e9)


def _make_folder(folder: str) -> None:
    """Create a folder and its parents, each entry synced."""
    if os.path.isdir(folder):
        return
    _make_folder(os.path.dirname(folder))
    os.makedirs(folder, exist_ok=True)
    _sync(os.path.dirname(folder))


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
