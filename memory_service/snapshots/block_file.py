"""Block files: uncompressed Arrow IPC files with one record batch per block, each naming the path it was written as.

Any Arrow reader opens them. This module reads the rows of a batch at the offset that the file's footer gives, straight
into memory of the caller. The block's checksum detects more than Arrow's own checks would, and no claim of a damaged or
hostile file makes it allocate more than the bytes of one block. Files are read and not mapped, because access to a
mapped file that has been truncated kills the process with SIGBUS.
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
_END = struct.Struct("<i6s")  # size of the footer, magic
_MAX_FOOTER_BYTES = 64 << 20  # 24 bytes a batch
_RECORD_BATCHES = 3  # number of the field `recordBatches: [Block]` of the table Footer in Arrow's format/File.fbs
_BLOCK = np.dtype([("offset", "<i8"), ("metadata", "<i4"), ("padding", "<i4"), ("body", "<i8")])  # the struct Block


def write_batches(sink: BinaryIO, path: str, row_bytes: int, batches: Iterable[NDArray[np.uint8]]) -> None:
    """Write a block file.

    Args:
        sink: where to write it.
        path: path below the snapshot's directory, recorded in the file.
        row_bytes: bytes of a packed row.
        batches: packed rows [n, row_bytes], contiguous uint8, which become a record batch each.
    """
    schema = row_schema(row_bytes).with_metadata({_PATH: path.encode()})
    with pa.ipc.new_file(sink, schema) as writer:
        for rows in batches:
            writer.write_batch(wrap_rows(rows, schema))


class BlockFile:
    """A block file opened for reading.

    Raises:
        ValueError: the file does not end as an Arrow file does, or its footer is damaged.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._end = source.seek(0, 2) - _END.size
        if self._end < 0:
            raise ValueError(f"{self._end + _END.size} bytes are too few for an Arrow file")
        footer_bytes, magic = _END.unpack(_read(source, self._end, _END.size))
        if magic != _MAGIC or not 0 < footer_bytes <= min(self._end, _MAX_FOOTER_BYTES):
            raise ValueError("the file does not end as an Arrow file does")
        self._batches = _batches(_read(source, self._end - footer_bytes, footer_bytes))

    def read(self, batch: int, rows: NDArray[np.uint8]) -> None:
        """Read the rows of a record batch.

        Args:
            batch: index of the record batch, from 0.
            rows: contiguous uint8 array that receives as many bytes as it has.

        Raises:
            ValueError: the file has no such batch, the batch has fewer bytes, or the file ends inside it.
            OSError: the system cannot read the file.
        """
        if batch >= len(self._batches):
            raise ValueError(f"the file has {len(self._batches)} batches, none is number {batch}")
        place = self._batches[batch]
        if place["body"] < rows.nbytes:
            raise ValueError(f"batch {batch} has {place['body']} bytes, not {rows.nbytes}")
        start = int(place["offset"]) + int(place["metadata"])
        if not 0 <= start <= self._end - rows.nbytes:
            raise ValueError(f"the footer places batch {batch} at byte {start} of {self._end}")
        _read_into(self._source, start, rows.data.cast("B"))


def written_as(source: BinaryIO) -> str | None:
    """The path that a block file records, even if only its beginning was written.

    Returns:
        The path; "" for a block file that records none, as earlier releases wrote them; None for any other file.
    """
    head = source.read(_HEAD_BYTES)
    if not head.startswith(_BEGINS):
        return None
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(head[len(_BEGINS) :]))
        if schema.names != ["row"] or not pa.types.is_fixed_size_binary(schema.types[0]):
            return None
        return (schema.metadata or {}).get(_PATH, b"").decode()
    except (OSError, ValueError, pa.ArrowException):  # truncated inside the schema, or no schema at all
        return None


def _batches(footer: bytes) -> NDArray[np.void]:
    """Offsets and sizes of the record batches, read from the footer, which is a flatbuffer."""

    def number(form: str, at: int) -> int:
        return struct.unpack_from(form, footer, at)[0]

    try:
        table = number("<I", 0)
        vtable = table - number("<i", table)
        field = table + number("<H", vtable + 4 + 2 * _RECORD_BATCHES)
        vector = field + number("<I", field)
        return np.frombuffer(footer, _BLOCK, number("<I", vector), vector + 4)
    except (struct.error, ValueError) as error:
        raise ValueError(f"the footer is damaged ({error})") from error


def _read(source: BinaryIO, start: int, count: int) -> bytes:
    content = np.empty(count, np.uint8)
    _read_into(source, start, content.data)
    return content.tobytes()


def _read_into(source: BinaryIO, start: int, memory: memoryview) -> None:
    """Fill memory with the bytes of a file from `start` on."""
    source.seek(start)
    left = memory
    while left:
        count = source.readinto(left)  # type: ignore[attr-defined]
        if not count:
            raise ValueError(f"the file ends at byte {start + len(memory) - len(left)}, {len(left)} bytes too soon")
        left = left[count:]
