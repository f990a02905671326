"""The directory of a snapshot: a local path, or any URI that pyarrow.fs can open."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from pyarrow import fs

from memory_service.errors import SnapshotError


@dataclass(frozen=True)
class StoredFile:
    """An entry of a folder listing."""

    size: int
    """Size in bytes."""
    modified: float
    """Modification time in seconds since 1970 by the store's clock; 0 if the store does not report it."""
    regular: bool
    """Whether it is a regular file, and not a directory, a pipe, a dangling link or the like."""
    own: bool
    """Whether it is a regular file that is not reached through a symbolic link; only such a file may be deleted."""


class Store(ABC):
    """Files of one directory and of the folders in it, addressed by relative path: NAME or FOLDER/NAME.

    Every method raises SnapshotError, naming the path, if the file system reports an error.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @abstractmethod
    def files(self, folder: str = "") -> dict[str, StoredFile]:
        """Entries of a folder by relative path; empty if the folder does not exist."""

    @abstractmethod
    def is_directory(self) -> bool:
        """Whether the directory itself exists."""

    @abstractmethod
    def reading(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Open a regular file for reading."""

    @abstractmethod
    def writing(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Open a new file for writing, creating its folder if needed; when the context ends, the file is durable."""

    @abstractmethod
    def create_whole(self, path: str, content: bytes, temporary: str) -> None:
        """Write a small file so that readers see either all of it or nothing.

        Args:
            path: relative path of the file.
            content: bytes of the file.
            temporary: name of a file that may exist for the duration of the call.

        Raises:
            SnapshotError: the file exists already.
        """

    @abstractmethod
    def delete(self, path: str) -> None:
        """Delete a file whose listing says `own`; no error if it does not exist any more."""

    def _taken(self, path: str) -> SnapshotError:
        return SnapshotError(f"snapshot {self.uri}: {path} exists already: another snapshot was faster, try again")

    @contextlib.contextmanager
    def _naming(self, path: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise SnapshotError(f"snapshot {self.uri}: cannot use {path or 'the directory'}: {error}") from error


class UriStore(Store):
    """A directory on a file system of pyarrow.fs, such as an object store.

    `create_whole` writes the final name directly, because object stores have no atomic rename, and a file appears there
    as a whole once it is closed. Two concurrent writers can both succeed; the content of the later one stays. On file
    systems that show half-written files, such as HDFS, only the manifest's checksum reveals them.
    """

    def __init__(self, uri: str, filesystem: fs.FileSystem, base: str) -> None:
        super().__init__(uri)
        self._fs = filesystem
        self._base = base.rstrip("/")

    def files(self, folder: str = "") -> dict[str, StoredFile]:
        """See Store."""
        selector = fs.FileSelector(self._at(folder), allow_not_found=True)
        with self._naming(folder):
            found = self._fs.get_file_info(selector)
        return {info.path.removeprefix(self._base).lstrip("/"): _described(info) for info in found}

    def is_directory(self) -> bool:
        """See Store."""
        with self._naming(""):
            return self._fs.get_file_info(self._base).type == fs.FileType.Directory

    @contextlib.contextmanager
    def reading(self, path: str) -> Iterator[BinaryIO]:
        """See Store."""
        with self._naming(path), self._fs.open_input_file(self._at(path)) as source:
            yield source

    @contextlib.contextmanager
    def writing(self, path: str) -> Iterator[BinaryIO]:
        """See Store."""
        with self._naming(path):
            self._fs.create_dir(self._at(path).rpartition("/")[0], recursive=True)
            with self._fs.open_output_stream(self._at(path)) as sink:
                yield sink

    def create_whole(self, path: str, content: bytes, temporary: str) -> None:
        """See Store."""
        if path in self.files():
            raise self._taken(path)
        with self.writing(path) as sink:
            sink.write(content)

    def delete(self, path: str) -> None:
        """See Store."""
        with self._naming(path), contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(self._at(path))

    def _at(self, path: str) -> str:
        return f"{self._base}/{path}" if path else self._base


class LocalStore(Store):
    """A directory of this machine. Files and folder entries are synced to disk before they are relied upon.

    Reading follows symbolic links, since checksums verify the content. Writing and deleting do not: files behind a link
    may belong to another snapshot. Existing files are never written to.
    """

    def __init__(self, uri: str, base: str) -> None:
        super().__init__(uri)
        self._base = os.path.realpath(base)

    def files(self, folder: str = "") -> dict[str, StoredFile]:
        """See Store."""
        linked = os.path.islink(self._at(folder)) and folder != ""
        with self._naming(folder):
            try:
                with os.scandir(self._at(folder)) as entries:
                    return {os.path.join(folder, entry.name): _stored(entry, linked) for entry in entries}
            except (FileNotFoundError, NotADirectoryError):
                return {}

    def is_directory(self) -> bool:
        """See Store."""
        return os.path.isdir(self._base)

    @contextlib.contextmanager
    def reading(self, path: str) -> Iterator[BinaryIO]:
        """See Store. Opening does not wait for the other end of a pipe: only regular files can be read."""
        with self._naming(path):
            descriptor = os.open(self._at(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb") as source:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OSError(errno.EINVAL, "not a regular file")
                yield source

    @contextlib.contextmanager
    def writing(self, path: str) -> Iterator[BinaryIO]:
        """See Store. A file that cannot be written completely is removed."""
        with self._naming(path), self._folder(path, create=True) as folder:
            name = os.path.basename(path)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(name, flags, 0o666, dir_fd=folder)
            try:
                with open(descriptor, "wb") as sink:
                    yield sink
                    sink.flush()
                    os.fsync(descriptor)
                os.fsync(folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=folder)
                raise

    def create_whole(self, path: str, content: bytes, temporary: str) -> None:
        """See Store. Hard-links a temporary file to its final name, which succeeds for one writer only."""
        with self.writing(temporary) as sink:
            sink.write(content)
        try:
            with self._naming(path):
                self._link(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(self._at(temporary))
        with self._naming(path), self._folder(path) as folder:
            os.fsync(folder)

    def delete(self, path: str) -> None:
        """See Store."""
        name = os.path.basename(path)
        with self._naming(path), contextlib.suppress(FileNotFoundError), self._folder(path) as folder:
            if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                raise OSError(errno.EINVAL, "not a regular file, so it is not deleted")
            os.unlink(name, dir_fd=folder)

    def _link(self, temporary: str, path: str) -> None:
        try:
            os.link(self._at(temporary), self._at(path))
        except FileExistsError:
            raise self._taken(path) from None
        except OSError:  # a file system without hard links
            if os.path.lexists(self._at(path)):
                raise self._taken(path) from None
            os.rename(self._at(temporary), self._at(path))

    @contextlib.contextmanager
    def _folder(self, path: str, create: bool = False) -> Iterator[int]:
        """Descriptor of the folder that contains a path: this directory, or a folder in it that is no link."""
        folder = os.path.dirname(path)
        if create:
            _make_directory(self._base)
        with _opened(self._base) as root:
            if not folder:
                yield root
                return
            if create:
                _make_folder(folder, root)
            if os.path.islink(self._at(folder)):
                raise OSError(
                    errno.ELOOP, f"{folder} is a symbolic link: put a folder of the snapshot's own in its place"
                )
            with _opened(folder, root) as descriptor:
                yield descriptor

    def _at(self, path: str) -> str:
        return os.path.join(self._base, path)


def open_store(uri: str | Path) -> Store:
    """Open the store at a path or URI.

    Raises:
        SnapshotError: no file system can use the path or URI.
    """
    text = str(uri)
    try:
        if "\0" in text:
            raise ValueError("a path has no null character")
        if "://" not in text:
            os.fsencode(text)
            return LocalStore(text, os.path.abspath(text))
        filesystem, base = fs.FileSystem.from_uri(text)
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        raise SnapshotError(f"snapshot {text!r}: cannot use the directory: {error}") from error
    return LocalStore(text, base) if isinstance(filesystem, fs.LocalFileSystem) else UriStore(text, filesystem, base)


def _described(info: fs.FileInfo) -> StoredFile:
    regular = info.type == fs.FileType.File
    return StoredFile(info.size or 0, (info.mtime_ns or 0) / 1e9, regular, regular)


def _stored(entry: os.DirEntry[str], linked: bool) -> StoredFile:
    try:
        found = entry.stat()
    except OSError:  # a dangling link, or a file deleted since the folder was listed
        return StoredFile(0, 0.0, regular=False, own=False)
    regular = stat.S_ISREG(found.st_mode)
    return StoredFile(found.st_size, found.st_mtime, regular, regular and not linked and not entry.is_symlink())


@contextlib.contextmanager
def _opened(path: str, parent: int | None = None) -> Iterator[int]:
    """Descriptor of a folder. If the descriptor of its `parent` is given, the folder must not be a link."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (os.O_NOFOLLOW if parent is not None else 0)
    descriptor = os.open(path, flags, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _make_folder(name: str, root: int) -> None:
    try:
        os.mkdir(name, dir_fd=root)
    except FileExistsError:
        return
    os.fsync(root)


def _make_directory(path: str) -> None:
    """Create a directory and its parents, and sync each new folder entry."""
    if os.path.isdir(path):
        return
    _make_directory(os.path.dirname(path))
    os.makedirs(path, exist_ok=True)
    with _opened(os.path.dirname(path)) as parent:
        os.fsync(parent)
