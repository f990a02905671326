"""Checks of refusals: each with its status, and everything else goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc

from protos import memory_pb2 as pb
from tests.conformance.check import Inapplicable, check, expect, expect_that, told
from tests.conformance.lookup_checks import asked, blocks_request, expect_rows
from tests.conformance.memory import BLOCKS, LOOKUP, Keys, Memory, Table, error_of

_TOO_LONG = 64 << 20  # bytes of a message, more than any shard reads


def _refused(memory: Memory, status: str, table: Table, /, says: str = "", **changes: Any) -> None:
    """Demand that a changed request is refused with a status and the active epoch, and that the stream goes on."""
    with memory.stream() as stream:
        stream.send(memory.request(table, table.some_ids(1), 8, **changes))
        with told(f"a request to be refused with {status}"):
            reply = stream.receive()
        expect("status", pb.Status.Name(reply.status), status)
        expect("request_id", reply.request_id, 8)
        expect("rows", reply.rows, b"")
        expect("epoch", reply.epoch, memory.epoch)
        expect_that(f"a message with {says!r}", bool(reply.message) and says in reply.message, reply.message)
        ids = table.some_ids(3)
        expect_rows(memory, table, ids, asked(memory, stream, table, ids, 9).rows)


@check
def an_unknown_table_is_refused(memory: Memory) -> None:
    """UNKNOWN_TABLE: the shard has no table of that name."""
    for name in ("no-such-table", "", "a" * 3000):
        _refused(memory, "STATUS_UNKNOWN_TABLE", memory.table, says=name[:100], table=name)


@check
def another_fingerprint_is_refused(memory: Memory) -> None:
    """FINGERPRINT_MISMATCH: the fingerprint is not that of the table, or not a fingerprint at all."""
    for fingerprint in (bytes(32), b"", b"short", bytes(4000)):
        _refused(memory, "STATUS_FINGERPRINT_MISMATCH", memory.table, fingerprint=fingerprint, says=memory.table.name)


@check
def another_epoch_is_refused(memory: Memory) -> None:
    """WRONG_EPOCH: the shard does not serve under that placement."""
    for epoch in (0, memory.epoch + 1000, (1 << 64) - 1):
        _refused(memory, "STATUS_WRONG_EPOCH", memory.table, epoch=epoch, says=str(epoch))


@check
def rows_beyond_the_table_are_refused(memory: Memory) -> None:
    """ROW_OUT_OF_RANGE: the table has no such row."""
    for table in memory.tables:
        for row in (table.rows, (1 << 8 * table.id_bytes) - 1, 1 << 8 * table.id_bytes - 1):
            if row >= table.rows:
                ids = table.encode([*table.some_ids(2), row])
                _refused(memory, "STATUS_ROW_OUT_OF_RANGE", table, row_ids=ids)


@check
def rows_of_other_shards_are_refused(memory: Memory) -> None:
    """ROW_OUT_OF_RANGE: this shard does not hold the row's block."""
    for table in memory.tables:
        for block in sorted(set(range(table.blocks)) - set(table.held.blocks))[:1]:
            ids = table.encode([*table.some_ids(2), table.ids_of(block)[0]])
            return _refused(memory, "STATUS_ROW_OUT_OF_RANGE", table, row_ids=ids, says=str(block))
    raise Inapplicable("this shard holds every block")


@check
def parts_of_ids_are_refused(memory: Memory) -> None:
    """INVALID_REQUEST: row_ids has a length that is not a multiple of an id's."""
    for length in {1, memory.table.id_bytes - 1, memory.table.id_bytes + 1}:
        _refused(memory, "STATUS_INVALID_REQUEST", memory.table, row_ids=bytes(length), says=str(length))


@check
def a_version_that_is_not_there_is_refused(memory: Memory) -> None:
    """OLD_VERSION: the table is older than min_version."""
    for version in (memory.table.version + 1000, (1 << 64) - 1):
        _refused(memory, "STATUS_OLD_VERSION", memory.table, min_version=version, says=str(version))


@check
def what_is_no_lookup_request_ends_the_stream(memory: Memory) -> None:
    """A message that is not a LookupRequest ends the stream with INVALID_ARGUMENT."""
    table = memory.table
    whole = memory.request(table, table.some_ids(3)).SerializeToString()
    cases = {
        "bytes that are no message": b"\xff\xff\xff",
        "a name that is no text": b"\x12\x01\xff",
        "a message cut short": whole[:-1],
        "a length beyond the message": b"\x42\xff\xff\xff\xff\x7f" + bytes(10),
        "a number without an end": b"\x08" + b"\xff" * 11,
        "field number 0": b"\x00\x01" + whole,
        "the end of a group that never began": b"\x0c" + whole,
        "request_id 0": memory.request(table, table.some_ids(3), 0),
    }
    for what, message in cases.items():
        with memory.stream() as stream:
            asked(memory, stream, table, table.some_ids(2))
            stream.send(message)
            code, status, details = error_of(stream.read)
            expect(f"code for {what}", code, grpc.StatusCode.INVALID_ARGUMENT)
            expect(f"status for {what}", status, pb.STATUS_INVALID_REQUEST)
            expect_that("details that say why", bool(details) and "Traceback" not in details, details)
    with memory.stream() as stream:
        asked(memory, stream, table, table.some_ids(2))


@check
def a_message_that_is_too_long_is_not_read(memory: Memory) -> None:
    """A message longer than that of the most rows that the shard takes ends its stream, also if it is compressed."""
    refusals = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED)  # of the length, or of compression
    for compression, codes in ((grpc.Compression.NoCompression, refusals[:1]), (grpc.Compression.Gzip, refusals)):
        with (
            memory.keys.channel(memory.rows_address, compression) as channel,
            memory.stream(channel) as stream,
        ):
            stream.send(memory.request(memory.table, [], row_ids=bytes(_TOO_LONG)))
            code, _, _ = error_of(stream.read)
            expect_that(f"{codes} for {compression}", code in codes, code)
    with memory.stream() as stream:
        asked(memory, stream, memory.table, memory.table.some_ids(2))


@check
def a_call_that_is_cancelled_disturbs_no_other(memory: Memory) -> None:
    """A client may go away in the middle of anything."""
    table = memory.table
    with memory.stream() as other:
        asked(memory, other, table, table.some_ids(3))
        for number in range(20):
            with memory.stream() as stream:
                stream.send(memory.request(table, table.some_ids(1000), 1))
                if number % 2:
                    stream.read()
        asked(memory, other, table, table.some_ids(4), 2)


@check
def methods_that_are_not_there_are_unimplemented(memory: Memory) -> None:
    """UNIMPLEMENTED: the service Rows has no such method."""
    for method in ("/engram.memory.v1.Rows/Drop", "/engram.memory.v2.Rows/Lookup", LOOKUP.lower()):
        call = memory.rows.stream_stream(method)
        code, _, _ = error_of(lambda: next(call(iter([b""]), timeout=30, metadata=memory.keys.metadata)))  # noqa: B023
        expect(f"code for {method}", code, grpc.StatusCode.UNIMPLEMENTED)


@check
def blocks_are_refused_with_their_status(memory: Memory) -> None:
    """Rows.Blocks ends in the status of an unknown table, another fingerprint, a block not held, or no request."""
    table = memory.table
    block = table.held.blocks[0]
    absent = sorted(set(range(table.blocks)) - set(table.held.blocks))[:1]
    cases = [
        (pb.BlocksRequest(table="none", fingerprint=table.fingerprint, blocks=[block]), "NOT_FOUND", "UNKNOWN_TABLE"),
        (pb.BlocksRequest(table=table.name, blocks=[block]), "FAILED_PRECONDITION", "FINGERPRINT_MISMATCH"),
        *(
            (blocks_request(table, [beyond]), "OUT_OF_RANGE", "ROW_OUT_OF_RANGE")
            for beyond in (*absent, table.blocks, table.blocks + 7, (1 << 32) - 1)
        ),
        (blocks_request(table, [block] * (table.blocks + 1)), "RESOURCE_EXHAUSTED", "REQUEST_TOO_LARGE"),
        (b"\xff\xff", "INVALID_ARGUMENT", "INVALID_REQUEST"),
        (b"\x0a\x01\xff", "INVALID_ARGUMENT", "INVALID_REQUEST"),
    ]
    for message, code, status in cases:
        came, number, _ = error_of(lambda: list(memory.blocks(message)))  # noqa: B023
        expect("code", came.name, code)
        expect("status", number, pb.Status.Value(f"STATUS_{status}"))


@check
def callers_without_the_token_are_refused(memory: Memory) -> None:
    """UNAUTHENTICATED: a call without the token, or with another one, before any of its messages is read."""
    if not memory.keys.token:
        raise Inapplicable("this memory asks for no token")
    bearer = ("authorization", f"Bearer {memory.keys.token}")
    for metadata in ([], [("authorization", "Bearer another-token-of-some-length")], [bearer, bearer]):
        for method in (LOOKUP, BLOCKS):
            call = memory.rows.stream_stream(method)
            code, status, _ = error_of(lambda: next(call(_silence(), timeout=30, metadata=metadata)))  # noqa: B023
            expect(f"code for {len(metadata)} tokens", code, grpc.StatusCode.UNAUTHENTICATED)
            expect("status", status, pb.STATUS_UNAUTHENTICATED)


@check
def callers_without_tls_are_refused(memory: Memory) -> None:
    """A shard with TLS answers nobody who speaks none."""
    if memory.keys.tls is None:
        raise Inapplicable("this memory speaks no TLS")
    with Keys(token=memory.keys.token).channel(memory.rows_address) as channel, memory.stream(channel) as stream:
        stream.send(memory.request(memory.table, memory.table.some_ids(1)))
        code, _, _ = error_of(stream.read)
        expect("code", code, grpc.StatusCode.UNAVAILABLE)


def _silence() -> Iterator[bytes]:
    """Messages of a call that has begun and sends none."""
    threading.Event().wait(1)
    yield from ()
