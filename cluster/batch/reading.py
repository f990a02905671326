"""Reading the input of a batch job: lines in pieces of bounded size, numbered and digested."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import xxhash

EMPTY_DIGEST = xxhash.xxh3_128().hexdigest()
"""Digest of an input without lines."""
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
"""First bytes of formats that are mistaken for JSONL."""


@dataclass(frozen=True)
class RawLine:
    """A line that is not blank."""

    number: int
    """Position among the lines that are not blank, from 1."""
    place: int
    """Line number in the file, from 1, blank lines included."""
    size: int
    """Size in bytes without surrounding white space."""
    content: bytes | None
    """The line without surrounding white space; None if it is larger than the limit."""
    digest: str
    """XXH3-128, in hex, of all lines up to this line."""


def read_lines(path: Path, limit: int) -> Iterator[RawLine]:
    """Yield the lines of a file that are not blank.

    A line of more than `limit` bytes is read in pieces, and yielded without its content.
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
    """Refuse a file that cannot be JSONL, judging by its first bytes.

    Raises:
        ValueError: it is not a regular file, or has another format.
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
    """The next line of a file without surrounding white space; keeps at most `limit` bytes of it in memory."""

    def __init__(self, before: xxhash.xxh3_128, limit: int) -> None:
        self.size = 0
        self.digest = before
        """Digest of the lines before and of this line up to its last byte that is not white space."""
        self._ahead = before.copy()
        """Digest that includes the white space after that byte, which belongs to the line if more text follows."""
        self._gap, self._limit, self._start = 0, limit, bytearray()

    def read_from(self, file: IO[bytes]) -> bool:
        """Read up to the end of the line. Returns False at the end of the file."""
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
