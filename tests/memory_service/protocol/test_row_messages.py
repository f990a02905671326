"""Messages with rows, against protobuf's own encoder and parser; and whatever else a peer may send."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.faults.mutations import mutate
from memory_service import InvalidRequest
from memory_service.protocol import row_messages
from memory_service.protocol.row_messages import (
    as_rows,
    id_type,
    ids_from_bytes,
    ids_to_bytes,
    rows_a_chunk,
    split_rows,
    with_rows,
)
from protos import memory_pb2 as pb

NUMBERS = st.integers(0, (1 << 64) - 1)
HEADERS = st.one_of(
    st.builds(
        pb.LookupReply,
        request_id=NUMBERS,
        status=st.sampled_from(pb.Status.values()),
        message=st.text(max_size=300),
        epoch=NUMBERS,
        version=NUMBERS,
        first_row=NUMBERS,
    ),
    st.builds(
        pb.BlockChunk,
        block=st.integers(0, (1 << 32) - 1),
        version=NUMBERS,
        digest=st.binary(max_size=300),
        first_row=NUMBERS,
    ),
)
ROWS = st.tuples(st.integers(0, 40), st.sampled_from([1, 4, 127, 128, 264])).map(
    lambda shape: np.random.default_rng(shape).integers(0, 256, shape, np.uint8)
)


@given(HEADERS, ROWS)
def test_what_is_written_is_what_protobuf_writes(header: Any, rows: np.ndarray) -> None:
    message = with_rows(header, rows)
    whole = type(header)()
    whole.CopyFrom(header)
    whole.rows = rows.tobytes()
    assert type(header).FromString(message) == whole
    if rows.size:
        assert message == whole.SerializeToString()


@given(HEADERS, ROWS)
def test_what_protobuf_writes_is_read_without_a_copy_of_the_rows(header: Any, rows: np.ndarray) -> None:
    whole = type(header)()
    whole.CopyFrom(header)
    whole.rows = rows.tobytes()
    message = whole.SerializeToString()
    found, content = split_rows(type(header), message)
    assert found == header
    np.testing.assert_array_equal(as_rows(content, rows.shape[1]), rows)
    assert not content.flags.writeable
    if rows.size:
        assert content.ctypes.data == np.frombuffer(message, np.uint8).ctypes.data + len(message) - rows.size


LOOKUP_REPLY = pb.LookupReply(request_id=7, message="why", epoch=300, version=2, first_row=9, rows=bytes(range(40)))
MALFORMED = {
    "a field number that does not end": b"\xff" * 12,
    "a number that does not end": b"\x08\xff\xff",
    "a number of more than ten bytes": b"\x08" + b"\xff" * 10 + b"\x01",
    "a number of megabytes": b"\x08" + b"\xff" * (3 << 20),
    "a text that is cut": LOOKUP_REPLY.SerializeToString()[:4],
    "a text that is not UTF-8": b"\x1a\x01\xff",
    "rows that are cut": LOOKUP_REPLY.SerializeToString()[:-1],
    "rows that claim a huge length": b"\x08\x01\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(10),
    "a text that claims a huge length": b"\x1a\xff\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(10),
    "rows before another field": pb.LookupReply(rows=b"abc").SerializeToString() + b"\x20\x01",
    "rows twice": pb.LookupReply(rows=b"abc").SerializeToString() * 2,
    "a byte after the rows": LOOKUP_REPLY.SerializeToString() + b"\x00",
    "a field of eight bytes": b"\x21" + bytes(8),
    "a group": b"\x0b\x0c",
    "a field type that there is not": b"\x0f\x01",
    "field number 0": b"\x00\x01",
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_replies_are_refused(what: str) -> None:
    with pytest.raises(InvalidRequest, match="not a LookupReply"):
        split_rows(pb.LookupReply, MALFORMED[what])


def test_every_prefix_of_a_reply_is_read_as_protobuf_reads_it_or_refused() -> None:
    message = LOOKUP_REPLY.SerializeToString()
    for end in range(len(message)):
        check(pb.LookupReply, message[:end])


def check(kind: Any, message: bytes) -> bool:
    """Whether a message is read; then it is what protobuf reads. Nothing but a refusal is raised otherwise."""
    try:
        header, content = split_rows(kind, message)
    except InvalidRequest:
        return False
    expected = kind.FromString(message)
    assert content.tobytes() == expected.rows
    expected.ClearField("rows")
    assert header == expected
    return True


@pytest.mark.parametrize("kind", [pb.LookupReply, pb.BlockChunk])
def test_random_bytes_are_read_as_protobuf_reads_them_or_refused(kind: Any) -> None:
    rng = random.Random(0)
    read = [check(kind, rng.randbytes(rng.randrange(40))) for _ in range(20_000)]
    assert 100 < sum(read) < 19_000


def test_damaged_messages_are_read_as_protobuf_reads_them_or_refused() -> None:
    rng = random.Random(1)
    chunk = pb.BlockChunk(block=3, version=1, digest=bytes(16), first_row=70, rows=bytes(range(200)))
    seeds = [(pb.LookupReply, LOOKUP_REPLY.SerializeToString()), (pb.BlockChunk, chunk.SerializeToString())]
    others = [message for _, message in seeds]
    read = [check(kind, mutate(rng, message, others)) for _ in range(5_000) for kind, message in seeds]
    assert 1000 < sum(read) < 9000


def test_what_protobuf_refuses_is_refused() -> None:
    rng = random.Random(2)
    refused = 0
    while refused < 500:
        message = rng.randbytes(rng.randrange(1, 30))
        try:
            pb.LookupReply.FromString(message)
        except (DecodeError, ValueError):
            refused += 1
            assert not check(pb.LookupReply, message)


def test_rows_must_be_whole() -> None:
    content = np.zeros(256, np.uint8)
    assert as_rows(content, 128).shape == (2, 128)
    assert as_rows(content[:0], 128).shape == (0, 128)
    with pytest.raises(InvalidRequest, match="256 bytes of rows of 100 bytes each"):
        as_rows(content, 100)


@pytest.mark.parametrize(("rows", "kind"), [(1, "<u4"), (1 << 32, "<u4"), ((1 << 32) + 1, "<u8"), (1 << 62, "<u8")])
def test_the_type_of_ids_follows_from_the_size_of_the_table(rows: int, kind: str) -> None:
    ids = np.array([0, rows - 1, 0, rows // 2], np.int64)
    content = ids_to_bytes(ids, rows)
    assert content == ids.astype(kind).tobytes()
    assert id_type(rows) == np.dtype(kind)
    np.testing.assert_array_equal(ids_from_bytes(content, rows), ids)
    for extra in range(1, np.dtype(kind).itemsize):
        with pytest.raises(InvalidRequest, match=f"row_ids has {len(content) + extra} bytes"):
            ids_from_bytes(content + bytes(extra), rows)


def test_an_id_beyond_int64_is_no_row() -> None:
    assert (ids_from_bytes(b"\xff" * 8, 1 << 40) < 0).all()


@pytest.mark.parametrize(("row_bytes", "rows"), [(1, 1 << 19), (264, 1985), (1 << 19, 1), (1 << 20, 1)])
def test_a_message_has_half_a_mebibyte_of_rows_or_one_row(row_bytes: int, rows: int) -> None:
    assert rows_a_chunk(row_bytes) == rows
    assert rows * row_bytes + row_messages.HEADER_BYTES < 4 << 20, "what protos/memory.proto promises"
