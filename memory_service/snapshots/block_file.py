"""Block files: Arrow IPC files of whole blocks, one record batch a block, uncompressed, each naming its own path.

Any Arrow reader opens them. Here the rows of a batch are read by their place in the file, straight into memory that
the caller has. The checksum of a block says more than what Arrow could find wrong with it, and whatever a damaged or
hostile file claims, no more is allocated than a block has bytes. Files are read, not mapped: access to a mapped file
that has been truncated meanwhile ends the process.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from memory_service.tables.arrow_rows import row_schema, wrap_rows

_MAGIC = b"ARROW1"
_BEGINS = _MAGIC + b"\0\0"
_HEAD_BYTES = 4096  # more than magic and schema take
_PATH = b"engram.file"  # key in the schema's metadata
_END = struct.Struct("<i6s")  # bytes of the footer, magic
_MAX_FOOTER_BYTES = 64 << 20  # 24 bytes a batch
_BATCHES = 3  # field of the table Footer in format/File.fbs of Arrow: recordBatches, a vector of Block
_BLOCK = np.dtype([("offset", "<i8"), ("metadata", "<i4"), ("padding", "<i4"), ("body", "<i8")])


def write_batches(sink: BinaryIO, path: str, row_bytes: int, batches: Iterable[NDArray[np.uint8]]) -> None:
    """Write packed rows [n, row_bytes], a record batch each, as the block file of this path."""
    schema = row_schema(row_bytes).with_metadata({_PATH: path.encode()})
    with pa.ipc.new_file(sink, schema) as writer:
        for rows in batches:
            writer.write_batch(wrap_rows(rows, schema))


class BlockFile:
    """A block file opened for reading.

    Raises:
        ValueError: it does not end as an Arrow file does; it is truncated or something else.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._end = source.seek(0, 2) - _END.size
        if self._end < 0:
            raise ValueError(f"it has {self._end + _END.size} bytes, too few for an Arrow file")
        footer_bytes, magic = _END.unpack(_read(source, self._end, _END.size))
        if magic != _MAGIC or not 0 < footer_bytes <= min(self._end, _MAX_FOOTER_BYTES):
            raise ValueError("it does not end as an Arrow file does")
        self._batches = _batches(_read(source, self._end - footer_bytes, footer_bytes))

    def read(self, batch: int, rows: NDArray[np.uint8]) -> None:
        """Fill `rows`, contiguous uint8, with those of a record batch.

        Raises:
            ValueError: there is no such batch, it has fewer bytes, or the file ends before.
        """
        if batch >= len(self._batches):
            raise ValueError(f"it has {len(self._batches)} batches, none is number {batch}")
        place = self._batches[batch]
        if place["body"] < rows.nbytes:
            raise ValueError(f"batch {batch} has {place['body']} bytes, not {rows.nbytes}")
        start = int(place["offset"]) + int(place["metadata"])
        if not 0 <= start <= self._end - rows.nbytes:
            raise ValueError(f"batch {batch} is said to lie at byte {start} of {self._end}")
        _read_into(self._source, start, rows.data.cast("B"))


def written_as(source: BinaryIO) -> str | None:
    """The path that a block file was written as, to its end or not; None for any other file.

    Empty for a block file that does not say: earlier releases wrote such.
    """
    head = source.read(_HEAD_BYTES)
    if not head.startswith(_BEGINS):
        return None
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(head[len(_BEGINS) :]))
        if schema.names != ["row"] or not pa.types.is_fixed_size_binary(schema.types[0]):
            return None
        return (schema.metadata or {}).get(_PATH, b"").decode()
    except (OSError, ValueError, pa.ArrowException):  # cut short within the schema, or no schema at all
        return None


def _batches(footer: bytes) -> NDArray[np.void]:
    """Places of the record batches, from a footer, which is a flatbuffer."""
    try:
        (table,) = struct.unpack_from("<I", footer)
        (back,) = struct.unpack_from("<i", footer, table)
        (step,) = struct.unpack_from("<H", footer, table - back + 4 + 2 * _BATCHES)
        (jump,) = struct.unpack_from("<I", footer, table + step)
        (count,) = struct.unpack_from("<I", footer, table + step + jump)
        return np.frombuffer(footer, _BLOCK, count, table + step + jump + 4)
    except (struct.error, ValueError) as error:
        raise ValueError(f"its footer is damaged ({error})") from error


def _read(source: BinaryIO, start: int, count: int) -> bytes:
    content = np.empty(count, np.uint8)
    _read_into(source, start, content.data)
    return content.tobytes()


def _read_into(source: BinaryIO, start: int, memory: memoryview) -> None:
    """Fill memory with a file's bytes from `start` on."""
    source.seek(start)
    left = memory
    while left:
        count = source.readinto(left)  # type: ignore[attr-defined]
        if not count:
            raise ValueError(f"it ends {len(left)} bytes too soon, after byte {start + len(memory) - len(left)}")
        left = left[count:]
