"""Messages of the service Rows, whose rows are copied once: from where they lie into the message.

The classes that protoc generates copy a field of bytes when it is set, when the message is serialised and when it is
read. Rows are the last field of their messages, so a message is also what comes before that field, followed by it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from memory_service.errors import InvalidRequest
from protos import memory_pb2 as pb

SERVICE = "engram.memory.v1.Rows"
LOOKUP, BLOCKS = f"/{SERVICE}/Lookup", f"/{SERVICE}/Blocks"
MESSAGE_BYTES = 4 << 20
"""Bytes of a message with rows, at most: what clients of gRPC take if they set nothing."""
HEADER_BYTES = 4096
"""Bytes of everything but ids or rows in a message, at most; texts are cut to fit."""
CHUNK_BYTES = 512 << 10
"""Bytes of rows in one message that this side sends: one is made while the one before it travels. Of 128 KiB to 4 MiB,
this took least time for 12,288 rows of 264 bytes."""

_ROWS_OF = {
    pb.LookupReply: pb.LookupReply.ROWS_FIELD_NUMBER,
    pb.BlockChunk: pb.BlockChunk.ROWS_FIELD_NUMBER,
}
_BYTES = 2  # wire type of a field with a length
_VARINT = 0


def id_type(rows: int) -> np.dtype[np.unsignedinteger]:
    """Type of the row ids in a LookupRequest to a table of so many rows."""
    return np.dtype("<u4" if rows <= 1 << 32 else "<u8")


def ids_to_bytes(ids: NDArray[np.int64], table_rows: int) -> bytes:
    """Row ids as LookupRequest.row_ids carries them."""
    return ids.astype(id_type(table_rows)).tobytes()


def ids_from_bytes(content: bytes, table_rows: int) -> NDArray[np.int64]:
    """Row ids of LookupRequest.row_ids; ids beyond int64 come out negative.

    Raises:
        InvalidRequest: the length is not that of whole ids.
    """
    kind = id_type(table_rows)
    if len(content) % kind.itemsize:
        raise InvalidRequest(f"row_ids has {len(content)} bytes, which is not a multiple of {kind.itemsize}")
    return np.frombuffer(content, kind).astype(np.int64)


def max_request_bytes(max_rows: int) -> int:
    """Bytes of the largest message that a shard takes whose lookups have at most so many rows."""
    return max(max_rows, 1) * id_type(1 << 63).itemsize + HEADER_BYTES


def rows_a_chunk(row_bytes: int) -> int:
    """Rows of one message."""
    return max(1, CHUNK_BYTES // row_bytes)


def with_rows(header: Message, rows: NDArray[np.uint8]) -> bytes:
    """A serialised message of the other fields and these packed rows, [n, row_bytes], contiguous."""
    tag = _ROWS_OF[type(header)] << 3 | _BYTES
    return b"".join((header.SerializeToString(), bytes((tag,)), _varint(rows.nbytes), rows.data))


def split_rows(kind: Any, message: bytes) -> tuple[Any, NDArray[np.uint8]]:
    """Parse a message without copying its rows.

    Args:
        kind: LookupReply or BlockChunk.
        message: the serialised message.

    Returns:
        The message without rows, and a read-only view of the bytes of its rows.

    Raises:
        InvalidRequest: the message is not of that kind.
    """
    try:
        start = _start_of(_ROWS_OF[kind], message)
        header = kind.FromString(message[: len(message) if start is None else start[0]])
    except (DecodeError, IndexError, ValueError) as error:  # ValueError for text that is not UTF-8
        raise InvalidRequest(f"not a {kind.DESCRIPTOR.name}: {error}") from error
    return header, np.frombuffer(message, np.uint8)[len(message) if start is None else start[1] :]


def as_rows(content: NDArray[np.uint8], row_bytes: int) -> NDArray[np.uint8]:
    """The rows in the bytes that `split_rows` returns, [n, row_bytes].

    Raises:
        InvalidRequest: they are not whole rows.
    """
    if content.size % row_bytes:
        raise InvalidRequest(f"a message has {content.size} bytes of rows of {row_bytes} bytes each")
    return content.reshape(-1, row_bytes)


def _start_of(field: int, message: bytes) -> tuple[int, int] | None:
    """Where the last field of a message begins and where its content does; None if the message lacks that field.

    Raises:
        IndexError, ValueError: the message is malformed, or another field follows.
    """
    at = 0
    while at < len(message):
        tag, following = _read_varint(message, at)
        if tag == field << 3 | _BYTES:
            size, content = _read_varint(message, following)
            if content + size != len(message):
                raise ValueError("rows must be the last field")
            return at, content
        size, following = _read_varint(message, following)
        if tag & 7 == _BYTES:
            following += size
        elif tag & 7 != _VARINT:
            raise ValueError(f"field {tag >> 3} has an unknown type")
        at = following
    return None


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise ValueError("a number has more than ten bytes")
