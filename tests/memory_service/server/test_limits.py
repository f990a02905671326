"""Limits of the doors: who asks for too much is told so, and everybody else is served."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from unittest.mock import Mock

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from memory_service import MemoryClient, RequestTooLarge, ResourceExhausted, write_snapshot
from memory_service.control.client import ControlClient
from memory_service.server.config import ServeConfig
from memory_service.server.limits import Admission, DoorLimits, client_of, host_of
from memory_service.server.process import start
from memory_service.server.server import ShardServer
from memory_service.shard.shard import Shard
from protos import memory_pb2 as pb
from tests.conformance.memory import Memory, Stream, error_of

SMALL = DoorLimits(
    control_message_bytes=5000, streams=3, streams_per_client=2, request_bytes_per_client=100 * (128 + 8)
)


@pytest.fixture
def server(cluster, implementation: str) -> ShardServer:
    server = cluster.add(ShardServer(Shard("shard-0"), limits=SMALL).start())
    cluster.activate(1)
    return server


def open_stream(stack: ExitStack, memory: Memory) -> Stream:
    """A stream on a connection of its own, which the shard has admitted."""
    channel = stack.enter_context(memory.keys.channel(memory.rows_address))
    stream = stack.enter_context(memory.stream(channel))
    assert len(ask(stream, memory, 3).rows) == 3 * 128
    return stream


def ask(stream: Stream, memory: Memory, rows: int) -> pb.LookupReply:
    stream.send(memory.request(memory.table, range(rows)))
    return stream.receive()


def test_a_stream_too_many_is_refused_until_one_is_closed(
    server: ShardServer, stack: ExitStack, packed: np.ndarray
) -> None:
    memory = stack.enter_context(Memory(server.address))
    with ExitStack() as held:
        streams = [open_stream(held, memory) for _ in range(2)]
        with memory.stream() as third:
            code, status, details = error_of(third.read)  # without having sent a message
        assert (code, status) == (grpc.StatusCode.RESOURCE_EXHAUSTED, pb.STATUS_RESOURCE_EXHAUSTED)
        assert "2 streams of ipv4:127.0.0.1 are open, the limit is 2 (streams_per_client): use fewer" in details
        assert "Traceback" not in details
        code, _, details = error_of(lambda: list(memory.blocks(pb.BlocksRequest(table="engram.1"))))
        assert (code, "2 streams of" in details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
        for stream in streams:
            assert len(ask(stream, memory, 4).rows) == 4 * 128  # they go on
    with closing(MemoryClient.connect(server.address)) as client:
        np.testing.assert_array_equal(client.lookup("engram.1", np.arange(9)).result().unique, packed[:9])


@pytest.mark.parametrize("limit", ["streams", "streams_per_client"])
def test_a_client_beyond_a_limit_is_told_so_and_asks_no_other_replica(
    cluster, stack: ExitStack, limit: str, implementation: str
) -> None:
    for index in range(2):
        cluster.add(ShardServer(Shard(f"shard-{index}"), limits=DoorLimits(**{limit: 1})).start())
    cluster.activate(1, replicas=2)
    client = cluster.connect(hedge_least_s=60)
    memories = [stack.enter_context(Memory(server.address)) for server in cluster.servers]
    held = [open_stream(stack, memory) for memory in memories]
    for _ in range(2):
        for stream, memory in zip(held, memories, strict=True):  # they go on
            assert len(ask(stream, memory, 3).rows) == 3 * 128
        with pytest.raises(ResourceExhausted, match=rf"shard-\d: 1 streams .* limit is 1 \({limit}\): use fewer"):
            client.lookup("engram.1", np.arange(9)).result()
    assert (client.stats().failed, client.stats().failovers, client.stats().retries) == (2, 0, 0)


@pytest.mark.slow
def test_a_host_with_hundreds_of_streams_is_served_by_default(
    tmp_path: Path, make_spec, packed: np.ndarray, stack: ExitStack, implementation: str
) -> None:
    specs = [make_spec(f"engram.{layer}") for layer in (1, 2, 3)]
    write_snapshot(tmp_path / "memory", dict.fromkeys(specs, packed))
    server = stack.enter_context(start(ServeConfig(tmp_path / "memory")))

    def serve(_: int) -> MemoryClient:
        client = MemoryClient.connect(server.address, 30)
        stack.callback(client.close)
        for found in [client.lookup(spec.name, np.arange(9), timeout_s=60) for spec in specs]:
            np.testing.assert_array_equal(found.result().unique, packed[:9])
        return client

    with ThreadPoolExecutor(32) as threads:
        clients = list(threads.map(serve, range(200)))
    assert server.shard.stats().streams == 200  # one for each client, whatever tables it uses
    with ThreadPoolExecutor(32) as threads:
        list(threads.map(MemoryClient.close, clients))


def test_too_many_bytes_are_refused_and_the_stream_goes_on(server: ShardServer, packed: np.ndarray) -> None:
    with closing(MemoryClient.connect(server.address)) as client:
        with pytest.raises(ResourceExhausted, match=r"13,736 bytes of rows .* the limit is 13,600"):
            client.lookup("engram.1", np.arange(101)).result()
        np.testing.assert_array_equal(client.lookup("engram.1", np.arange(100)).result().unique, packed[:100])


def test_a_control_message_too_long_is_refused(server: ShardServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        prepare = channel.unary_unary("/engram.memory.v1.MemoryShard/Prepare")
        with pytest.raises(grpc.RpcError) as raised:
            prepare(pb.PrepareRequest(snapshot_uri="x" * 6000).SerializeToString())
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError, match="not a placement"):
            prepare(pb.PrepareRequest(snapshot_uri="x").SerializeToString())
    with ControlClient(server.address) as control, pytest.raises(RequestTooLarge, match="higher control_message_bytes"):
        control.snapshot("x" * 6000, "engram.1", "x-", [0], {})


def test_admission_counts_by_client_and_forgets_who_left() -> None:
    admission = Admission("shard-0", SMALL)
    with admission.stream("a") as a, admission.stream("a"), admission.stream("b") as b:
        with pytest.raises(ResourceExhausted, match="3 streams of all clients"), admission.stream("c"):
            pass
        with a.request(13_600), b.request(13_000):
            with pytest.raises(ResourceExhausted, match="1 bytes of rows requested while 13,600 are under way to a"):
                a.request(1).__enter__()
            with pytest.raises(ResourceExhausted, match="under way to b"):
                b.request(601).__enter__()
            with b.request(600):
                pass
        with a.request(1):
            pass
    assert admission.is_idle


def test_a_refused_stream_of_one_client_takes_nothing_from_all() -> None:
    admission = Admission("shard-0", SMALL)
    with admission.stream("a"), admission.stream("a"):
        for _ in range(5):
            with pytest.raises(ResourceExhausted, match="2 streams of a"), admission.stream("a"):
                pass
        with admission.stream("b"):
            pass
    assert admission.is_idle


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.7:51234", "ipv4:10.0.0.7"),
        ("ipv6:[::1]:51234", "ipv6:[::1]"),
        ("ipv6:%5B::1%5D:51234", "ipv6:[::1]"),
        ("ipv6:%5Bfe80::fc%254%5D:51234", "ipv6:[fe80::fc%4]"),
        ("ipv6:%5B::ffff:10.0.0.7%5D:51234", "ipv4:10.0.0.7"),
        ("unix:/tmp/shard.sock", "unix:/tmp/shard.sock"),
    ],
)
def test_a_client_without_a_name_is_its_host(peer: str, host: str) -> None:
    assert host_of(peer) == host
    assert client_of(Mock(peer=lambda: peer, peer_identities=lambda: None)) == host


@pytest.mark.parametrize(("identity", "client"), [(b"worker-7", "worker-7"), (b"worker-\xff", "worker-\ufffd")])
def test_a_client_with_a_certificate_is_the_name_in_it(identity: bytes, client: str) -> None:
    assert client_of(Mock(peer=lambda: "ipv4:10.0.0.7:51234", peer_identities=lambda: [identity])) == client


@pytest.mark.parametrize("field", list(vars(DoorLimits())))
def test_every_limit_must_be_above_zero(field: str) -> None:
    for value in (0, -1, float("nan")):
        with pytest.raises(ValueError, match=f"{field}: {value} must be above 0"):
            DoorLimits(**{field: value})


DESCRIBE = "/engram.memory.v1.MemoryShard/Describe"


def silent_call(stack: ExitStack, address: str, method: str = DESCRIBE) -> grpc.Call:
    """A call that has begun and whose message does not come."""
    over = threading.Event()
    stack.callback(over.set)
    channel = stack.enter_context(grpc.insecure_channel(address))
    grpc.channel_ready_future(channel).result(10)
    call = channel.stream_stream(method)(iter(lambda: over.wait(60) and None, None))
    stack.callback(call.cancel)
    return call


def watching_call(stack: ExitStack, address: str) -> grpc.Call:
    """A call that is under way: the server has answered it once, and keeps it."""
    channel = stack.enter_context(grpc.insecure_channel(address))
    call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
    next(call)
    stack.callback(call.cancel)
    return call


def control_server(stack: ExitStack, **limits: float) -> ShardServer:
    return stack.enter_context(ShardServer(Shard("shard-0"), limits=DoorLimits(**limits)))  # type: ignore[arg-type]


def test_silent_calls_keep_no_other_from_being_answered(stack: ExitStack) -> None:
    server = control_server(stack)
    for method in [DESCRIBE, "/grpc.health.v1.Health/Watch"] * 10:
        silent_call(stack, server.address, method)
    with ControlClient(server.address) as control:
        assert control.describe().shard == "shard-0"


def test_a_call_whose_message_is_late_is_ended(stack: ExitStack) -> None:
    server = control_server(stack, control_message_seconds=0.2)
    for method in (DESCRIBE, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"):
        with pytest.raises(grpc.RpcError) as raised:
            next(silent_call(stack, server.address, method))
        assert raised.value.code() is grpc.StatusCode.CANCELLED
    with ControlClient(server.address) as control:
        assert control.describe().shard == "shard-0"


def test_a_call_without_a_message_is_refused(stack: ExitStack) -> None:
    server = control_server(stack)
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError, match="no message") as raised:
        next(channel.stream_stream(DESCRIBE)(iter(())))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_client_beyond_its_share_of_control_calls_is_refused(stack: ExitStack) -> None:
    server = control_server(stack, control_calls_per_client=2)
    calls = [watching_call(stack, server.address) for _ in range(2)]
    refused = r"2 control calls of ipv4:127\.0\.0\.1 are under way, the limit is 2 \(control_calls_per_client\): try"
    with ControlClient(server.address) as control:
        with pytest.raises(ResourceExhausted, match=refused):
            control.retire(1)
        for call in calls:
            call.cancel()
        assert control.describe().shard == "shard-0"  # asks again after a moment, should the calls not have ended yet


def test_calls_beyond_the_limit_of_all_are_refused_by_name(stack: ExitStack) -> None:
    server = control_server(stack, control_calls=2)
    calls = [watching_call(stack, server.address) for _ in range(2)]
    with ControlClient(server.address) as control:
        with pytest.raises(ResourceExhausted, match=r"\(control_calls\): try again later, or start the shard with"):
            control.retire(1)
        for call in calls:
            call.cancel()
        assert control.describe().shard == "shard-0"


def test_what_unpacks_to_more_than_the_bound_ends_its_stream_and_nothing_else(
    processes, stack: ExitStack, packed: np.ndarray, implementation: str
) -> None:
    process = processes.start()
    processes.addresses = [processes.ready(process)]
    client = processes.connect()
    client.lookup("engram.1", np.arange(9)).result()
    memory = stack.enter_context(Memory(processes.addresses[0]))
    seen = psutil.Process(process.pid)
    before = seen.memory_info().rss
    channel = stack.enter_context(memory.keys.channel(memory.rows_address, grpc.Compression.Gzip))
    with memory.stream(channel) as stream:
        stream.send(memory.request(memory.table, [], row_ids=bytes(128 << 20)))  # an eighth of a megabyte on the wire
        code, _, _ = error_of(stream.read)
        assert code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED)
    assert seen.memory_info().rss - before < 64 << 20
    np.testing.assert_array_equal(client.lookup("engram.1", np.arange(50)).result().unique, packed[:50])
