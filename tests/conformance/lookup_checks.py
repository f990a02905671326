"""Checks of Rows.Lookup: right rows, in order, in replies that a client can take apart."""

from __future__ import annotations

from protos import memory_pb2 as pb
from tests.conformance.check import Inapplicable, check, expect, expect_that, told
from tests.conformance.memory import REPLY_BYTES, Answer, Memory, Refused, Stream, Table
from tests.conformance.wire import field_numbers, varint

_LARGE = 9 << 20  # bytes of rows, more than two replies can carry


def expect_rows(memory: Memory, table: Table, ids: list[int], came: bytes) -> None:
    """Demand the rows of these ids, as the method Blocks gives them."""
    size = table.row_bytes
    blocks = {block: memory.block_rows(table, block) for block in {number // table.block_rows for number in ids}}
    expect("bytes of rows", len(came), len(ids) * size)
    for place, number in enumerate(ids):
        at = number % table.block_rows * size
        row = blocks[number // table.block_rows][at : at + size]
        expect(f"row {number} of {table.name!r}, in place {place}", came[place * size : (place + 1) * size], row)


def expect_joined(memory: Memory, table: Table, answer: Answer, request_id: int = 1) -> None:
    """Demand that the replies to a request, each of whole rows, join to its rows."""
    done = 0
    for reply in answer.replies:
        expect("request_id", reply.request_id, request_id)
        expect_that(f"epoch {memory.epoch} or a later one", reply.epoch >= memory.epoch, reply.epoch)
        expect("version, as in the first reply", reply.version, answer.replies[0].version)
        expect(f"bytes beyond whole rows of {table.row_bytes}", len(reply.rows) % table.row_bytes, 0)
        expect("first_row", reply.first_row, done)
        done += len(reply.rows) // table.row_bytes


def asked(memory: Memory, stream: Stream, table: Table, ids: list[int], request_id: int = 1) -> Answer:
    """Ask, and read the answer."""
    stream.send(memory.request(table, ids, request_id))
    with told(f"{len(ids)} rows of {table.name!r}"):
        return stream.answer(request_id, len(ids), table.row_bytes)


@check
def rows_come_in_the_order_of_the_ids(memory: Memory) -> None:
    """Rows of a request come in the order of its ids, and repeats are allowed."""
    for table in memory.tables:
        ids = table.some_ids(40)
        ids += [ids[3], ids[3], ids[0]]
        with memory.stream() as stream:
            answer = asked(memory, stream, table, ids)
        expect_joined(memory, table, answer)
        expect_rows(memory, table, ids, answer.rows)


@check
def the_first_and_the_last_row_of_a_block_are_found(memory: Memory) -> None:
    """The block of a row is its id divided by block_rows; the last block of a table may be short."""
    for table in memory.tables:
        ends = [table.ids_of(block) for block in (table.held.blocks[0], table.held.blocks[-1])]
        ids = [number for end in ends for number in (end[0], end[-1])]
        with memory.stream() as stream:
            expect_rows(memory, table, ids, asked(memory, stream, table, ids).rows)


@check
def a_request_without_ids_is_answered(memory: Memory) -> None:
    """A request for no rows gets one reply without rows."""
    with memory.stream() as stream:
        answer = asked(memory, stream, memory.table, [], 5)
        expect("rows", answer.rows, b"")
        expect_joined(memory, memory.table, answer, 5)
        stream.end()
        expect("replies after it", _rest(stream), [])


@check
def replies_carry_the_id_of_their_request(memory: Memory) -> None:
    """request_id is chosen by the client, any number but 0; many requests may be under way on a stream."""
    table, numbers = memory.table, [7, 1, (1 << 64) - 1, 1 << 32, 300]
    asked_ids = {number: table.some_ids(3 + place) for place, number in enumerate(numbers)}
    with memory.stream() as stream:
        for number in numbers:
            stream.send(memory.request(table, asked_ids[number], number))
        stream.end()
        with told(f"{len(numbers)} requests on one stream"):
            replies = [stream.receive() for _ in numbers]
    expect("request ids of the replies, sorted", sorted(reply.request_id for reply in replies), sorted(numbers))
    for reply in replies:
        expect_rows(memory, table, asked_ids[reply.request_id], reply.rows)


@check
def large_answers_come_in_chunks(memory: Memory) -> None:
    """A reply has less than 4 MiB; the next reply begins where it ended."""
    table = memory.table
    ids = table.some_ids(50) * (_LARGE // (50 * table.row_bytes) + 1)
    with memory.stream() as stream:
        try:
            answer = asked(memory, stream, table, ids)
        except Refused as refused:
            raise Inapplicable(f"this shard takes no {len(ids)} rows at once: {refused}") from None
    largest = max(map(len, answer.serialised))
    expect_that(f"replies below {REPLY_BYTES} bytes", largest < REPLY_BYTES, largest)
    expect_that("several replies", len(answer.replies) > 1, len(answer.replies))
    expect_joined(memory, table, answer)
    first = answer.rows[: 50 * table.row_bytes]
    expect_rows(memory, table, ids[:50], first)
    expect("the same rows asked again and again", answer.rows, first * (len(ids) // 50))


@check
def fields_of_replies_are_in_the_order_of_their_numbers(memory: Memory) -> None:
    """Senders write fields in the order of their numbers, so that rows come last."""
    with memory.stream() as stream:
        answer = asked(memory, stream, memory.table, memory.table.some_ids(20))
        stream.send(memory.request(memory.table, [0], 2, table="no such table"))
        with told("a request that is to be refused"):
            refusal = stream.read()
    chunks = memory.blocks(blocks_request(memory.table, [memory.table.held.blocks[0]]))
    for message in (*answer.serialised, refusal, *chunks):
        numbers = field_numbers(message)
        expect("field numbers", numbers, sorted(set(numbers)))


@check
def requests_are_read_as_protobuf_demands(memory: Memory) -> None:
    """Fields may come in any order, unknown ones are ignored, and of repeated ones the last counts."""
    table, ids = memory.table, memory.table.some_ids(9)
    whole = memory.request(table, ids)
    fields = [pb.LookupRequest(**{field.name: value}).SerializeToString() for field, value in whole.ListFields()]
    unknown = (
        varint(999 << 3 | 2) + varint(3) + b"abc" + varint(1000 << 3 | 1) + bytes(8) + varint(15 << 3 | 5) + bytes(4)
    )
    earlier = pb.LookupRequest(table="another", row_ids=table.encode([1, 2]), epoch=99).SerializeToString()
    cases = {
        "fields in reverse order": b"".join(reversed(fields)),
        "unknown fields": unknown + whole.SerializeToString() + unknown,
        "fields given twice": earlier + whole.SerializeToString(),
    }
    with memory.stream() as stream:
        for what, message in cases.items():
            stream.send(message)
            with told(what):
                expect_rows(memory, table, ids, stream.answer(1, len(ids), table.row_bytes).rows)


@check
def a_stream_that_its_client_ends_is_answered_and_ended_with_ok(memory: Memory) -> None:
    """Once the client has ended its side, the shard answers what it has read, and ends the stream with OK."""
    table = memory.table
    with memory.stream() as stream:
        for number in range(1, 31):
            stream.send(memory.request(table, table.some_ids(number), number))
        stream.end()
        with told("30 requests and the end of the client's side"):
            answered = {pb.LookupReply.FromString(message).request_id for message in _rest(stream)}
        expect("requests answered", answered, set(range(1, 31)))
        expect("code of the stream", stream.call.code().name, "OK")
    with memory.stream() as stream:
        stream.end()
        expect("replies on a stream without requests", _rest(stream), [])
        expect("its code", stream.call.code().name, "OK")


@check
def an_expired_request_is_dropped(memory: Memory) -> None:
    """The shard drops a request, without a reply, once the time left when it was sent has passed."""
    table, ids = memory.table, memory.table.some_ids(2)
    with memory.stream() as stream:
        stream.send(memory.request(table, ids, 1, sent_us=10_000_000))
        # Sent, by its own account, ten seconds before the first one, with a second to live: it waited since.
        stream.send(memory.request(table, ids, 2, sent_us=1, timeout_ms=1000))
        stream.send(memory.request(table, ids, 3, sent_us=10_000_000))
        stream.end()
        with told("three requests, one of which has expired"):
            answered = sorted(pb.LookupReply.FromString(message).request_id for message in _rest(stream))
    expect("requests answered", answered, [1, 3])


@check
def a_version_that_is_there_may_be_demanded(memory: Memory) -> None:
    """min_version is the oldest version of the table that the client takes."""
    table, ids = memory.table, memory.table.some_ids(2)
    with memory.stream() as stream:
        stream.send(memory.request(table, ids, min_version=table.version))
        with told(f"min_version {table.version}, which the shard has described"):
            answer = stream.answer(1, 2, table.row_bytes)
    version = answer.replies[0].version
    expect_that(f"version {table.version} or a later one", version >= table.version, version)


@check
def a_client_that_never_reads_keeps_nobody_waiting(memory: Memory) -> None:
    """Replies that a client does not read hold up neither other streams nor the shard."""
    table = memory.table
    ids = table.some_ids(50) * (_LARGE // (50 * table.row_bytes) + 1)
    with memory.keys.channel(memory.rows_address) as channel, memory.stream(channel) as silent:
        for number in range(1, 101):
            silent.send(memory.request(table, ids, number))
        for _ in range(5):
            with memory.stream() as stream:
                asked(memory, stream, table, table.some_ids(3))


def blocks_request(table: Table, blocks: list[int]) -> pb.BlocksRequest:
    """A proper request for blocks."""
    return pb.BlocksRequest(table=table.name, fingerprint=table.fingerprint, blocks=blocks)


def _rest(stream: Stream) -> list[bytes]:
    """Replies until the shard ends the stream."""
    with told("the rest of the stream"):
        return list(stream.call)
