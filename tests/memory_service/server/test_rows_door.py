"""The rows door as a stranger meets it: the wire itself, hostile messages included. A proper lookup works afterwards.

tests/conformance tries what every shard must do; here is what is seen from within, or takes a shard of a certain kind.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import grpc
import numpy as np
import psutil
import pytest

from memory_service.control.client import ControlClient
from memory_service.protocol import row_messages
from memory_service.server.rows_door import QueueClock
from memory_service.server.server import ShardServer
from memory_service.shard.shard import ShardConfig
from protos import memory_pb2 as pb
from tests.conformance.memory import Memory, Stream, Table, error_of

MAX_ROWS = 100
pytestmark = pytest.mark.usefixtures("implementation")


@pytest.fixture
def server(cluster, packed: np.ndarray) -> Iterator[ShardServer]:
    cluster.start(1, config=ShardConfig(max_rows=MAX_ROWS))
    yield cluster.servers[0]
    rows = cluster.connect().lookup("engram.1", np.arange(50)).result()
    np.testing.assert_array_equal(rows.unique, packed[:50])


@pytest.fixture
def memory(server: ShardServer) -> Iterator[Memory]:
    with Memory(server.address) as memory:
        yield memory


@pytest.fixture
def table(memory: Memory) -> Table:
    return memory.table


def test_rows_come_back_with_their_request_id_epoch_and_version(
    memory: Memory, table: Table, packed: np.ndarray, server: ShardServer
) -> None:
    server.shard.tables["engram.1"].version = 5
    with memory.stream() as stream:
        for request_id in (3, 1, 2):
            stream.send(memory.request(table, [request_id, 7], request_id))
        for _ in range(3):
            reply = stream.receive()
            assert (reply.status, reply.epoch, reply.version) == (pb.STATUS_OK, 1, 5)
            assert reply.rows == packed[[reply.request_id, 7]].tobytes()


def test_every_refusal_is_a_counted_reply_and_the_stream_goes_on(
    memory: Memory, table: Table, packed: np.ndarray, server: ShardServer
) -> None:
    server.shard.tables["engram.1"].version = 5
    cases: list[tuple[dict[str, object], int, str]] = [
        ({"row_ids": table.encode([1650])}, pb.STATUS_ROW_OUT_OF_RANGE, "1649, requested row 1650"),
        ({"row_ids": b"\xff" * 4}, pb.STATUS_ROW_OUT_OF_RANGE, "requested row 4294967295"),
        ({"fingerprint": b"other"}, pb.STATUS_FINGERPRINT_MISMATCH, "engram.1"),
        ({"epoch": 7}, pb.STATUS_WRONG_EPOCH, "serves epoch 1, asked under epoch 7"),
        ({"row_ids": table.encode([0] * 101)}, pb.STATUS_REQUEST_TOO_LARGE, "takes 100"),
        ({"row_ids": bytes(7)}, pb.STATUS_INVALID_REQUEST, "row_ids has 7 bytes"),
        ({"table": "engram.9"}, pb.STATUS_UNKNOWN_TABLE, "engram.9"),
        ({"min_version": 6}, pb.STATUS_OLD_VERSION, "has version 5, asked for 6 or later"),
    ]
    with memory.stream() as stream:
        for changes, status, message in cases:
            stream.send(memory.request(table, [0], 9, **changes))
            reply = stream.receive()
            assert (reply.request_id, reply.status, reply.rows) == (9, status, b""), reply
            assert message in reply.message
        stream.send(memory.request(table, [5], 9, min_version=5))
        assert stream.receive().rows == packed[5].tobytes()
        counted = server.shard.stats()
    assert counted.refused_by == {
        "row_out_of_range": 2,
        "fingerprint_mismatch": 1,
        "wrong_epoch": 1,
        "request_too_large": 1,
        "invalid_request": 1,
        "unknown_table": 1,
        "old_version": 1,
    }
    assert (counted.refused, counted.requests, counted.streams) == (8, 1, 1)


def test_a_message_longer_than_the_most_rows_is_refused_before_it_is_read(memory: Memory, table: Table) -> None:
    with memory.stream() as stream:
        stream.send(memory.request(table, [0], fingerprint=bytes(4000)))  # within what the rest may take
        assert stream.receive().status == pb.STATUS_FINGERPRINT_MISMATCH
        stream.send(memory.request(table, [0], fingerprint=bytes(8 * MAX_ROWS + row_messages.HEADER_BYTES)))
        code, _, details = error_of(stream.read)
        assert (code, "larger than max" in details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)


def test_a_message_that_unpacks_to_more_is_refused_too(memory: Memory, table: Table) -> None:
    with memory.keys.channel(memory.rows_address, grpc.Compression.Gzip) as channel, memory.stream(channel) as stream:
        stream.send(memory.request(table, [], row_ids=bytes(1 << 20)))  # a kilobyte on the wire
        code, _, _ = error_of(stream.read)
        assert code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED)


def test_an_expired_request_is_dropped_and_counted(memory: Memory, table: Table, server: ShardServer) -> None:
    with memory.stream() as stream:
        stream.send(memory.request(table, [1], 1, sent_us=10_000_000))
        # Sent, by its own account, ten seconds before the first one, with a second to live: it waited in a queue since.
        stream.send(memory.request(table, [2], 2, sent_us=1, timeout_ms=1000))
        stream.send(memory.request(table, [3], 3, sent_us=10_000_000))
        assert {stream.receive().request_id for _ in range(2)} == {1, 3}
    assert server.shard.stats().expired == 1


def test_queue_clock_needs_no_common_origin() -> None:
    clock = QueueClock()
    assert clock.waited_us(sent_us=5_000, now_us=1_000_900) == 0
    assert clock.waited_us(sent_us=6_000, now_us=1_002_900) == 1_000
    assert clock.waited_us(sent_us=7_000, now_us=1_002_400) == 0
    assert clock.waited_us(sent_us=8_000, now_us=1_004_400) == 1_000


def test_what_is_no_request_ends_its_stream_and_no_other(memory: Memory, table: Table, packed: np.ndarray) -> None:
    with memory.stream() as other:
        for message in (b"\xff\xff\xff", b"\x12\x01\xff", b"", memory.request(table, [1], 0)):
            with memory.stream() as stream:
                stream.send(message)
                code, status, details = error_of(stream.read)
                assert (code, status) == (grpc.StatusCode.INVALID_ARGUMENT, pb.STATUS_INVALID_REQUEST)
                assert "request" in details.lower()
                assert "Traceback" not in details
        other.send(memory.request(table, [5]))
        assert other.receive().rows == packed[5].tobytes()


def test_a_long_name_in_a_refusal_is_cut(memory: Memory, table: Table) -> None:
    with memory.stream() as stream:
        stream.send(memory.request(table, [1], table="n" * 3000))
        assert 500 < len(stream.receive().message) <= 1000
    code, status, details = error_of(lambda: next(memory.blocks(pb.BlocksRequest(table="n" * 3000))))
    assert (code, status) == (grpc.StatusCode.NOT_FOUND, pb.STATUS_UNKNOWN_TABLE)
    assert 500 < len(details) <= 1000


def busy(server: ShardServer, memory: Memory) -> Stream:
    """A stream on which the shard waits for its client to read."""
    stream = memory.stream()
    for number in range(1, 3001):
        stream.send(memory.request(memory.table, [7] * MAX_ROWS, number))
    answered = settled(lambda: server.shard.stats().requests)
    assert 0 < answered < 3000, "the connection holds fewer replies than that"
    return stream


def settled(count: Callable[[], int]) -> int:
    """Wait until a number no longer changes."""
    before = -1
    while before != (now := count()):
        before = now
        time.sleep(0.2)
    return now


def test_a_stopping_shard_says_goodbye_to_the_streams_that_it_answers(cluster) -> None:
    server = cluster.start(1, config=ShardConfig(max_rows=MAX_ROWS)).servers[0]
    stopped: list[bool] = []
    with Memory(server.address) as memory, busy(server, memory) as stream:
        stopper = threading.Thread(target=lambda: stopped.append(server.stop(30)))
        stopper.start()
        time.sleep(0.2)  # for the shard to begin; the client has read nothing yet
        while (reply := stream.receive()).request_id:
            assert (reply.status, len(reply.rows)) == (pb.STATUS_OK, MAX_ROWS * memory.table.row_bytes)
        assert (reply.status, "shard-0 is stopping" in reply.message) == (pb.STATUS_UNAVAILABLE, True)
        stream.end()
        answered = [pb.LookupReply.FromString(message) for message in stream.call]
        assert all(reply.status == pb.STATUS_OK for reply in answered if reply.request_id)
        assert stream.call.code() is grpc.StatusCode.OK
        stopper.join()
    assert stopped == [True]


def test_a_stopping_shard_waits_for_nobody_for_ever(cluster) -> None:
    server = cluster.start(1, config=ShardConfig(max_rows=MAX_ROWS)).servers[0]
    with Memory(server.address) as memory, busy(server, memory) as stream:
        started = time.monotonic()
        server.stop(0.2)  # this client does not read
        assert time.monotonic() - started < 10
        with pytest.raises(grpc.RpcError):
            list(stream.call)


def test_a_stopping_shard_breaks_off_idle_streams(cluster) -> None:
    server = cluster.start(1).servers[0]
    with Memory(server.address) as memory, memory.stream() as stream:
        stream.send(memory.request(memory.table, [1]))
        stream.receive()
        time.sleep(0.3)  # the reply is here before the shard knows that it has been sent
        started = time.monotonic()
        assert server.stop(30)
        assert time.monotonic() - started < 10
        code, _, _ = error_of(stream.read)
        assert code in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)


def test_clients_that_never_read_take_a_bounded_amount_of_memory(
    processes, packed: np.ndarray, stack: ExitStack
) -> None:
    process = processes.start()
    processes.addresses = [processes.ready(process)]
    seen = psutil.Process(process.pid)
    with Memory(processes.addresses[0]) as memory:
        table = memory.table
        ids = table.some_ids(50) * 1000
        memory.lookup(table, ids)
        before = seen.memory_info().rss
        message = memory.request(table, ids).SerializeToString()
        streams = [memory.stream(stack.enter_context(memory.keys.channel(memory.rows_address))) for _ in range(4)]
        for stream in streams:
            for _ in range(100):
                stream.send(message)  # together 2.5 GB of rows
        with ControlClient(memory.address) as control:
            settled(lambda: control.stats().requests)
        assert seen.memory_info().rss - before < 256 << 20
        rows = processes.connect().lookup("engram.1", np.arange(50)).result()
        np.testing.assert_array_equal(rows.unique, packed[:50])


class TestChunks:
    """Replies of several messages, by the implementation in Python, whose chunks can be made small."""

    @pytest.fixture(autouse=True)
    def small(self, implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
        if implementation != "python":
            pytest.skip("the size of its chunks is fixed")
        monkeypatch.setattr(row_messages, "CHUNK_BYTES", 7 * 128)

    @pytest.mark.parametrize(("count", "sizes"), [(0, [0]), (6, [6]), (7, [7]), (8, [7, 1]), (100, [7] * 14 + [2])])
    def test_rows_come_in_chunks(
        self, memory: Memory, table: Table, packed: np.ndarray, count: int, sizes: list[int]
    ) -> None:
        ids = [int(id) for id in np.random.default_rng(0).integers(0, table.rows, count)]
        answer = memory.lookup(table, ids)
        assert answer.rows == packed[ids].tobytes()
        assert [len(reply.rows) // 128 for reply in answer.replies] == sizes
        assert [reply.first_row for reply in answer.replies] == [7 * place for place in range(len(sizes))]

    def test_blocks_come_in_chunks(self, memory: Memory, table: Table, packed: np.ndarray) -> None:
        wanted = pb.BlocksRequest(table=table.name, fingerprint=table.fingerprint, blocks=[3, 25])
        chunks = [pb.BlockChunk.FromString(chunk) for chunk in memory.blocks(wanted)]
        assert [(chunk.block, chunk.first_row) for chunk in chunks] == [
            *((3, 7 * place) for place in range(10)),
            *((25, 7 * place) for place in range(8)),
        ]
        assert b"".join(chunk.rows for chunk in chunks) == packed[[*range(192, 256), *range(1600, 1650)]].tobytes()
