"""The native rows door: equal to the one in Python in what it says, and in how blocks, versions and epochs change."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import grpc
import numpy as np
import psutil
import pytest
import xxhash

from memory_service import BearerToken, Placement, ServerSecurity, ShardAddress, TableSpec
from memory_service.control.client import ControlClient
from memory_service.native import extension
from memory_service.protocol.row_messages import BLOCKS, LOOKUP, SERVICE, ids_to_bytes
from memory_service.server.limits import DoorLimits
from memory_service.server.server import ShardServer
from memory_service.shard.arena import Arena
from memory_service.shard.shard import Shard, ShardConfig
from memory_service.shard.table import ShardTable
from protos import memory_pb2 as pb

pytestmark = pytest.mark.skipif(extension() is None, reason="the native implementation is not built: make native")
LARGE = 600_000  # rows of `wide`, 38 MB: more than lies in buffers on the way to a client that does not read


class Stream:
    """One stream of lookups, without any of the client's care: messages are read only when they are asked for."""

    def __init__(self, port: int, stack: ExitStack, spec: TableSpec, metadata: tuple = ()) -> None:
        channel = grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.max_receive_message_length", 4 << 20)])
        stack.callback(channel.close)
        self.spec = spec
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.replies = channel.stream_stream(LOOKUP)(iter(self._outbox.get, None), metadata=metadata)
        stack.callback(self.replies.cancel)

    def request(self, ids: np.ndarray, **changes: object) -> pb.LookupRequest:
        fields = {"request_id": 1, "epoch": 1, "table": self.spec.name, "timeout_ms": 60_000}
        fields["fingerprint"] = bytes.fromhex(self.spec.fingerprint)
        return pb.LookupRequest(**{**fields, "row_ids": ids_to_bytes(ids, self.spec.rows), **changes})

    def send(self, message: pb.LookupRequest | bytes | None) -> None:
        self._outbox.put(message.SerializeToString() if isinstance(message, pb.LookupRequest) else message)

    def receive(self) -> pb.LookupReply:
        return pb.LookupReply.FromString(next(self.replies))

    def ask(self, ids: np.ndarray, **changes: object) -> tuple[pb.LookupReply, np.ndarray]:
        """The last reply to a request, and all of its rows."""
        self.send(self.request(ids, **changes))
        return self.rows_of(len(ids))

    def rows_of(self, count: int) -> tuple[pb.LookupReply, np.ndarray]:
        parts: list[bytes] = []
        size = count * self.spec.row_bytes
        while True:
            reply = self.receive()
            parts = [*(parts if reply.first_row else []), reply.rows]
            if reply.status or sum(map(len, parts)) >= size:
                return reply, np.frombuffer(b"".join(parts), np.uint8).reshape(-1, self.spec.row_bytes)


@pytest.fixture
def wide(make_spec) -> TableSpec:
    return make_spec(column_rows=(20_011, 20_021, 20_023, 20_029), dim=32)


@pytest.fixture
def content(wide: TableSpec, make_packed) -> np.ndarray:
    return make_packed(wide)


@pytest.fixture
def server(wide: TableSpec, content: np.ndarray, stack: ExitStack) -> ShardServer:
    server = ShardServer(Shard("shard-0"))
    table = ShardTable(wide, compiled=extension())
    blocks = [(block, content[block * 64 : block * 64 + wide.block_length(block)]) for block in range(wide.blocks)]
    table.add(blocks)
    server.shard._publish(tables={wide.name: table})
    server.start()
    server.shard.activate(Placement.build(1, [ShardAddress("shard-0", server.address)], [wide]))
    stack.callback(server.stop, 0.5)
    assert server.implementation == "native"
    return server


@pytest.fixture
def stream(server: ShardServer, stack: ExitStack, wide: TableSpec) -> Stream:
    return Stream(server.rows_port, stack, wide)


def test_a_description_names_the_implementation(server: ShardServer) -> None:
    with ControlClient(server.address) as control:
        assert control.describe().implementation == "native"


def test_rows_of_many_replies_come_in_order(stream: Stream, content: np.ndarray) -> None:
    ids = np.random.default_rng(2).integers(0, len(content), LARGE)
    for request_id in (7, 5):
        stream.send(stream.request(ids, request_id=request_id))
    for request_id in (7, 5):
        reply, rows = stream.rows_of(LARGE)
        assert (reply.request_id, reply.status, reply.epoch, reply.version) == (request_id, pb.STATUS_OK, 1, 0)
        assert reply.first_row > 0
        np.testing.assert_array_equal(rows, content[ids])


def test_blocks_that_leave_are_never_read(
    server: ShardServer, wide: TableSpec, content: np.ndarray, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks come and go under lookups of all of them; what is read of a slot that was given back would show."""
    give_back = Arena.give_back

    def poison(self: Arena, slots: list[int]) -> None:
        for slot in slots:
            self.slot(slot)[:] = 0xEE
        give_back(self, slots)

    monkeypatch.setattr(Arena, "give_back", poison)
    table = server.shard.tables[wide.name]
    over = threading.Event()
    failures: list[str] = []
    answers = [0, 0]

    def ask(seed: int) -> None:
        stream, random = Stream(server.rows_port, stack, wide), np.random.default_rng(seed)
        while not over.is_set():
            ids = random.integers(0, 1000 * 64, 20_000)
            reply, rows = stream.ask(ids)
            answers[bool(reply.status)] += 1
            if reply.status not in (pb.STATUS_OK, pb.STATUS_ROW_OUT_OF_RANGE):
                failures.append(str(reply)[:200])
            elif not reply.status and not np.array_equal(rows, content[ids]):
                failures.append(f"{(rows != content[ids]).any(1).sum()} rows are wrong")

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    leaving = np.arange(0, 1000, 8)
    for _ in range(60):
        table.drop(leaving)
        table.add((block, content[block * 64 : block * 64 + 64]) for block in np.roll(leaving, 3).tolist())
        over.wait(0.01)
    over.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert min(answers) > 0, answers  # with rows, and without


def stalled(stream: Stream, ids: np.ndarray) -> None:
    """Ask for rows of many replies and take the first of them only: the others wait in the shard."""
    stream.send(stream.request(ids))
    assert stream.receive().first_row == 0


def test_a_client_that_does_not_read_keeps_no_block(stream: Stream, server: ShardServer, wide: TableSpec) -> None:
    stalled(stream, np.arange(LARGE) % wide.rows)
    dropping = threading.Thread(target=server.shard.tables[wide.name].drop, args=(np.array([700]),))
    dropping.start()
    dropping.join(20)
    assert not dropping.is_alive()
    reply, _ = stream.rows_of(LARGE)
    assert reply.status == pb.STATUS_ROW_OUT_OF_RANGE
    assert "lies in block 700, which this shard does not hold" in reply.message


def test_a_new_version_begins_again_with_the_first_row(
    stream: Stream, server: ShardServer, wide: TableSpec, content: np.ndarray
) -> None:
    ids = np.random.default_rng(3).integers(0, wide.rows, LARGE)
    stalled(stream, ids)
    server.shard.tables[wide.name].version = 4
    seen = []
    parts: list[bytes] = []
    while sum(map(len, parts)) < LARGE * wide.row_bytes or seen[-1][1] != 4:
        reply = stream.receive()
        seen.append((reply.first_row, reply.version))
        parts = [*(parts if reply.first_row else []), reply.rows]
    assert (0, 4) in seen  # although the first reply was of version 0
    rows = np.frombuffer(b"".join(parts), np.uint8).reshape(-1, wide.row_bytes)
    np.testing.assert_array_equal(rows, content[ids])
    assert server.shard.stats().requests == 1


def test_an_epoch_that_ends_ends_the_request(stream: Stream, server: ShardServer, wide: TableSpec) -> None:
    stalled(stream, np.arange(LARGE) % wide.rows)
    server.shard.activate(replace(server.shard.placement, epoch=2))
    server.shard.retire(2)
    reply, _ = stream.rows_of(LARGE)
    assert (reply.status, reply.epoch) == (pb.STATUS_WRONG_EPOCH, 2)
    assert reply.message == "shard-0 serves epoch 2, asked under epoch 1"
    assert stream.ask(np.arange(3), epoch=2)[0].status == pb.STATUS_OK
    assert server.shard.stats().refused_by == {"wrong_epoch": 1}


def test_a_stopping_shard_finishes_what_is_being_answered(
    stream: Stream, server: ShardServer, stack: ExitStack, wide: TableSpec
) -> None:
    idle = Stream(server.rows_port, stack, wide)
    idle.ask(np.arange(3))
    stalled(stream, np.arange(LARGE) % wide.rows)
    ended: list[bool] = []
    stopping = threading.Thread(target=lambda: ended.append(server.stop(30)))
    stopping.start()
    with pytest.raises(grpc.RpcError):  # broken off, since nothing is asked down it
        idle.receive()
    missing = LARGE
    while (reply := stream.receive()).request_id:
        missing = LARGE - reply.first_row - len(reply.rows) // wide.row_bytes
    assert missing == 0
    assert (reply.status, reply.message) == (pb.STATUS_UNAVAILABLE, "shard-0 is stopping")
    stream.send(None)
    assert list(stream.replies) == []
    assert stream.replies.code() is grpc.StatusCode.OK
    stopping.join()
    assert ended == [True]


def test_a_shard_that_stops_at_once_ends_cleanly(stack: ExitStack, wide: TableSpec, content: np.ndarray) -> None:
    """Calls end in other threads than the one that stops, and must not do so after their queue is gone."""
    shard = Shard("shard-0")
    table = ShardTable(wide, compiled=extension())
    table.add((block, content[block * 64 : block * 64 + wide.block_length(block)]) for block in range(wide.blocks))
    shard._publish(tables={wide.name: table})
    ids = np.arange(LARGE) % wide.rows
    for epoch in range(1, 21):
        with ExitStack() as streams, ShardServer(shard) as server:
            shard.activate(Placement.build(epoch, [ShardAddress("shard-0", server.address)], [wide]))
            for _ in range(3):
                stream = Stream(server.rows_port, streams, wide)
                stream.send(stream.request(ids, epoch=epoch))
                assert stream.receive().first_row == 0
            server.stop(0)


def test_clients_that_never_read_cost_little(processes, stack: ExitStack, spec: TableSpec) -> None:
    process = processes.start()
    with ControlClient(processes.ready(process)) as control:
        port = control.describe().rows_port
    memory = psutil.Process(process.pid).memory_info
    warm = Stream(port, stack, spec)
    warm.ask(np.arange(100))
    before = memory().rss
    ids = np.random.default_rng(4).integers(0, spec.rows, 1 << 18)  # 32 MiB of rows
    for _ in range(20):
        stalled(Stream(port, stack, spec), ids)
    assert memory().rss - before < 20 * (5 << 20)  # of each the request, two replies and what gRPC holds of them


def sent(port: int, stack: ExitStack, spec: TableSpec, message: pb.LookupRequest | bytes) -> list[object]:
    """All that comes back for one message on a stream of its own."""
    stream = Stream(port, stack, spec)
    stream.send(message)
    stream.send(None)
    found: list[object] = []
    try:
        found += [pb.LookupReply.FromString(reply) for reply in stream.replies]
    except grpc.RpcError as error:
        found += [error.details(), sorted(error.trailing_metadata())]
    return [*found, stream.replies.code()]


REQUESTS: dict[str, Callable[[Stream], pb.LookupRequest | bytes]] = {
    "rows": lambda to: to.request(np.array([3, 1, 3, 9])),
    "no rows": lambda to: to.request(np.array([], np.int64)),
    "out of range": lambda to: to.request(np.array([1, 1650, -1])),
    "not held": lambda to: to.request(np.array([1, 700, 650])),
    "half an id": lambda to: to.request(np.array([]), row_ids=b"abcde"),
    "another table": lambda to: to.request(np.array([1]), table="it's\n\x01 \\ \u00e4"),
    "quotes": lambda to: to.request(np.array([1]), table="'\""),
    "another fingerprint": lambda to: to.request(np.array([1]), fingerprint=b"other"),
    "a long fingerprint": lambda to: to.request(np.array([1]), fingerprint=b"\xab" * 2000),
    "another epoch": lambda to: to.request(np.array([1]), epoch=7),
    "a later version": lambda to: to.request(np.array([1]), min_version=3),
    "too many": lambda to: to.request(np.arange(101)),
    "too many bytes": lambda to: to.request(np.arange(60)),
    "no time": lambda to: to.request(np.array([1]), timeout_ms=0),
    "no message": lambda to: b"\xff\xff",
    "not UTF-8": lambda to: b"\x12\x01\xff",
    "beyond the bound": lambda to: bytes(9000),
}


@pytest.fixture
def two_ports(cluster, monkeypatch: pytest.MonkeyPatch, spec: TableSpec) -> list[int]:
    """The same shard by both implementations; it holds the first half of the blocks."""
    limits = DoorLimits(request_bytes_per_client=50 * (128 + 8))
    for switch in ("0", "1"):
        monkeypatch.setenv("ENGRAM_MEMORY_NATIVE", switch)
        server = cluster.add(ShardServer(Shard("shard-0", ShardConfig(max_rows=100)), limits=limits).start())
        placement = Placement.build(1, [ShardAddress("shard-0", server.address)], [spec])
        server.shard.prepare(placement, snapshot_uri=cluster.snapshot)
        server.shard.activate(placement)
        server.shard.tables[spec.name].drop(np.arange(10, 20))
    assert [server.implementation for server in cluster.servers] == ["python", "native"]
    return [server.rows_port for server in cluster.servers]


@pytest.mark.parametrize("name", REQUESTS)
def test_both_implementations_say_the_same(
    two_ports: list[int], cluster, stack: ExitStack, spec: TableSpec, name: str
) -> None:
    message = REQUESTS[name](Stream(two_ports[0], stack, spec))
    python, native = (sent(port, stack, spec, message) for port in two_ports)
    if isinstance(message, bytes):  # then details hold what protobuf and gRPC say
        python[0], native[0] = (str(found[0]).partition(": ")[0] for found in (python, native))
    if len(message if isinstance(message, bytes) else b"") > 4896:
        python[0] = native[0]
    assert native == python
    counts = [server.shard.stats() for server in cluster.servers]
    for field in ("requests", "rows", "bytes", "expired", "refused_by"):
        assert getattr(counts[1], field) == getattr(counts[0], field), field


def blocks_from(port: int, request: pb.BlocksRequest | bytes) -> list[object]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_stream(BLOCKS)(request if isinstance(request, bytes) else request.SerializeToString())
        found: list[object] = []
        try:
            found += [pb.BlockChunk.FromString(chunk) for chunk in call]
        except grpc.RpcError as error:
            found += [error.details(), sorted(error.trailing_metadata())]
        return [*found, call.code()]


@pytest.mark.parametrize("blocks", [[3, 25, 0], [], [3, 12], [26], [1] * 27], ids=str)
def test_both_implementations_give_the_same_blocks(
    two_ports: list[int], spec: TableSpec, packed: np.ndarray, blocks: list[int]
) -> None:
    for fields in ({}, {"table": "other"}, {"fingerprint": b"other"}):
        wanted = {"table": spec.name, "fingerprint": bytes.fromhex(spec.fingerprint), "blocks": blocks, **fields}
        python, native = (blocks_from(port, pb.BlocksRequest(**wanted)) for port in two_ports)
        assert native == python
    if blocks == [3, 25, 0]:
        native = blocks_from(
            two_ports[1], pb.BlocksRequest(**{**wanted, "fingerprint": bytes.fromhex(spec.fingerprint)})
        )
        assert native[0].digest == xxhash.xxh3_128_digest(packed[3 * 64 : 4 * 64])


def test_a_large_block_comes_in_chunks(server: ShardServer, make_spec, make_packed, stack: ExitStack) -> None:
    spec = make_spec("engram.2", block_rows=1 << 14, dim=512)
    packed = make_packed(spec)
    table = ShardTable(spec, compiled=extension())
    table.add([(0, packed)])
    server.shard._publish(tables={spec.name: table})
    wanted = pb.BlocksRequest(table=spec.name, fingerprint=bytes.fromhex(spec.fingerprint), blocks=[0])
    *chunks, code = blocks_from(server.rows_port, wanted)
    assert code is grpc.StatusCode.OK
    assert len(chunks) > 1
    assert b"".join(chunk.rows for chunk in chunks) == packed.tobytes()
    assert {chunk.digest for chunk in chunks} == {xxhash.xxh3_128_digest(packed)}


def test_an_unknown_method_is_unimplemented(server: ShardServer) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.rows_port}") as channel:
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary(f"/{SERVICE}/Other")(b"")
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("given", [(), ("Bearer a-token-of-another-kind",), ("Bearer a-token-of-some-length",) * 2])
def test_a_call_without_the_token_is_refused(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, spec: TableSpec, given: tuple[str, ...]
) -> None:
    said = []
    for switch in ("0", "1"):
        monkeypatch.setenv("ENGRAM_MEMORY_NATIVE", switch)
        security = ServerSecurity(token=BearerToken("a-token-of-some-length"))
        server = stack.enter_context(ShardServer(Shard("shard-0"), security=security))
        stream = Stream(server.rows_port, stack, spec, tuple(("authorization", header) for header in given))
        with pytest.raises(grpc.RpcError) as raised:
            stream.receive()  # although no message was sent
        said.append((raised.value.code(), raised.value.details(), sorted(raised.value.trailing_metadata())))
    assert said[1] == said[0]
    assert said[0][0] is grpc.StatusCode.UNAUTHENTICATED


def test_a_shard_without_a_placement_and_a_port_that_is_taken(stack: ExitStack, spec: TableSpec) -> None:
    server = stack.enter_context(ShardServer(Shard("shard-0")))
    reply, _ = Stream(server.rows_port, stack, spec).ask(np.arange(3))
    assert (reply.status, reply.message) == (pb.STATUS_UNAVAILABLE, "shard-0 has no active placement yet: give it one")
    from memory_service.server.native_rows_door import NativeRowsDoor

    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{server.rows_port}: choose a free port"):
        NativeRowsDoor(server.shard, "127.0.0.1", server.rows_port, ServerSecurity(), DoorLimits())
