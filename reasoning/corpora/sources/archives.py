"""Source archives, read as streams in memory: nothing is unpacked to disk, no link is followed, nothing is executed."""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from reasoning.corpora.sources.entry import Entry

MAX_RATIO = 100
"""Largest unpacked size relative to the archive's own; that of source code is 3 to 20."""
FREE_BYTES = 64 << 20
"""Unpacked size that any archive may have, however small it is."""
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError)
_OPENERS: Mapping[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
    b"]\0\0": lzma.open,  # .tar.lzma
}


def archive_files(path: Path, project: str) -> Iterator[Entry]:
    """Yield the files of a .zip or of a .tar, also one packed by gzip, bzip2 or xz.

    The folder that holds everything in most source archives, named after package and version, is no part of the paths.

    Raises:
        ValueError: the archive is damaged or encrypted, or it unpacks to far more than source code would.
    """
    with _damage_named(path):
        with path.open("rb") as file:
            first = file.read(8)
        root = None
        for entry in _zip_files(path, project) if first.startswith(b"PK") else _tar_files(path, project, first):
            root = _root(entry.path) if root is None else root
            yield Entry(project, entry.path.removeprefix(root), entry.size, entry.read, entry.regular)


def _root(path: str) -> str:
    """Return the folder around everything, with its slash, as the archive's first file has it; "" for none."""
    first, slash, _ = path.partition("/")
    return first + slash if slash and first not in ("", ".", "..") else ""


def _tar_files(path: Path, project: str, first: bytes) -> Iterator[Entry]:
    opener = next((opener for magic, opener in _OPENERS.items() if first.startswith(magic)), open)
    with opener(path, "rb") as unpacked:
        metered = _Metered(unpacked, _limit(path))
        with tarfile.open(fileobj=cast(BinaryIO, metered), mode="r|") as archive:
            for member in archive:
                if not member.isdir():
                    read = partial(_read_member, path, archive, member)
                    yield Entry(project, member.name.removeprefix("./"), member.size, read, member.isreg())


def _read_member(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    with _damage_named(path):
        content = archive.extractfile(member)
        assert content is not None, f"{member.name} is a regular file"
        return content.read()


def _zip_files(path: Path, project: str) -> Iterator[Entry]:
    with zipfile.ZipFile(path) as archive:
        _check_limit(sum(member.file_size for member in archive.infolist()), _limit(path))
        for member in archive.infolist():
            if not member.is_dir():
                kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the archive was made without Unix modes
                read = partial(_read_zipped, path, archive, member)
                yield Entry(project, member.filename, member.file_size, read, kind in (0, stat.S_IFREG))


def _read_zipped(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    with _damage_named(path):
        return archive.read(member)


class _BombError(ValueError):
    """An archive unpacks to more than it may."""


def _limit(path: Path) -> int:
    return max(FREE_BYTES, MAX_RATIO * path.stat().st_size)


def _check_limit(size: int, limit: int) -> None:
    if size > limit:
        raise _BombError(f"it unpacks to more than {limit:,} bytes, far more than source code would")


class _Metered:
    """An unpacked stream that refuses to yield more than `limit` bytes."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream, self._limit, self._seen = stream, limit, 0

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes."""
        content = self._stream.read(size)
        self._seen += len(content)
        _check_limit(self._seen, self._limit)
        return content


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn what the readers of archives raise into an error that names the archive."""
    try:
        yield
    except _BombError as error:
        raise ValueError(f"sources: {path} is refused: {error}; leave this package out") from error
    except _DAMAGE as error:
        raise ValueError(f"sources: {path} is damaged ({error}); delete it so that it is fetched again") from error
