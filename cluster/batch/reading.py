"""Reading the input of a batch job: lines in pieces of bounded size, numbered and digested on the way."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import xxhash

EMPTY_DIGEST = xxhash.xxh3_128().hexdigest()
"""Digest of no line."""
_PIECE_BYTES = 1 << 20
_OTHER_FORMATS = (
    (b"\x1f\x8b", "gzip-compressed"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"\xfd7zXZ\x00", "compressed with xz"),
    (b"BZh", "compressed with bzip2"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PAR1", "Parquet"),
    (b"ARROW1", "Arrow IPC"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
)
"""How files begin that are mistaken for JSONL."""


@dataclass(frozen=True)
class RawLine:
    """A line that is not blank."""

    number: int
    """Its number among the lines that are not blank, from 1. Blank lines change nothing."""
    place: int
    """Its number in the file, from 1, as editors count."""
    size: int
    """Bytes without surrounding white space."""
    content: bytes | None
    """Those bytes; None if they are more than were to be read."""
    digest: str
    """XXH3-128, in hex, of the lines up to this one."""


def read_lines(path: Path, limit: int) -> Iterator[RawLine]:
    """Yield the lines of a file that are not blank.

    A line of more than `limit` bytes is passed over in pieces, and yielded without its content.
    """
    digest = xxhash.xxh3_128()
    numbers = itertools.count(1)
    with open(path, "rb") as file:
        for place in itertools.count(1):
            line = _Line(digest, limit)
            if not line.read_from(file):
                return
            if line.size:
                digest = line.digest
                yield RawLine(next(numbers), place, line.size, line.content, digest.hexdigest())


def check_format(path: Path) -> None:
    """Refuse what cannot be a JSONL file by its first bytes.

    Raises:
        ValueError: it is not a file, or one of another format.
    """
    if not path.exists():
        raise ValueError(f"input: no file {path}; give a JSONL file")
    if not path.is_file():
        raise ValueError(f"input: {path} is not a regular file, and a job reads its input twice; give a JSONL file")
    with open(path, "rb") as file:
        start = file.read(8)
    for magic, format in _OTHER_FORMATS:
        if start.startswith(magic):
            raise ValueError(f"input: {path} is {format}; give a JSONL file, plain text in UTF-8")


class _Line:
    """The line that a file is at, stripped of white space, which takes memory for `limit` bytes of it at most."""

    def __init__(self, before: xxhash.xxh3_128, limit: int) -> None:
        self.size = 0
        self.digest = before
        """Of the lines before and of this one up to its last byte that is no white space."""
        self._ahead = before.copy()
        """Of white space after that byte as well: it belongs to the line if more follows."""
        self._gap, self._limit, self._start = 0, limit, bytearray()

    def read_from(self, file: IO[bytes]) -> bool:
        """Read to the end of the line; False at the end of the file."""
        piece = b""
        while not piece.endswith(b"\n") and (more := file.readline(_PIECE_BYTES)):
            piece = more
            self._add(piece if self.size else piece.lstrip())
        if self.size:
            self.digest.update(b"\n")
        return bool(piece)

    def _add(self, piece: bytes) -> None:
        text = piece.rstrip()
        if text:
            self.size += self._gap + len(text)
            self._gap = 0
            self._ahead.update(text)
            self.digest = self._ahead.copy()
        self._gap += len(piece) - len(text)
        self._ahead.update(piece[len(text) :])
        self._start += piece[: max(0, self._limit - len(self._start))]

    @property
    def content(self) -> bytes | None:
        return bytes(self._start).rstrip() if self.size <= self._limit else None
