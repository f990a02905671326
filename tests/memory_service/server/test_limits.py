"""Limits of the doors: who asks for too much is told so, and everybody else is served."""

from __future__ import annotations

from contextlib import ExitStack, closing, suppress
from types import SimpleNamespace

import grpc
import numpy as np
import psutil
import pyarrow as pa
import pytest
from pyarrow import flight

from memory_service import ClientSecurity, MemoryClient, ResourceExhausted, TableSpec
from memory_service.control.client import ControlClient
from memory_service.server.arrow_memory import LIMIT_BYTES
from memory_service.server.limits import Admission, DoorLimits, client_of
from memory_service.server.server import ShardServer
from memory_service.shard.shard import Shard
from protos import memory_pb2 as pb

IDS = pa.schema([("row", pa.int64())])
SMALL = DoorLimits(
    control_message_bytes=5000, streams=3, streams_per_client=2, request_bytes_per_client=100 * (128 + 8)
)


@pytest.fixture
def server(cluster) -> ShardServer:
    server = cluster.add(ShardServer(Shard("shard-0"), limits=SMALL).start())
    cluster.activate(1)
    return server


def open_stream(stack: ExitStack, port: int) -> tuple[flight.FlightStreamWriter, flight.FlightStreamReader]:
    client = stack.enter_context(closing(ClientSecurity().flight_client("127.0.0.1", port)))
    writer, reader = client.do_exchange(flight.FlightDescriptor.for_path("lookup", "engram.1"))
    writer.begin(IDS)

    def close() -> None:
        with suppress(pa.ArrowException):
            writer.close()

    stack.callback(close)
    return writer, reader


def ask(writer: flight.FlightStreamWriter, spec: TableSpec, ids: np.ndarray) -> None:
    header = pb.LookupRequest(request_id=1, epoch=1, fingerprint=bytes.fromhex(spec.fingerprint), timeout_ms=60_000)
    writer.write_with_metadata(pa.record_batch([pa.array(ids)], schema=IDS), header.SerializeToString())


def test_a_stream_too_many_is_refused_until_one_is_closed(
    server: ShardServer, stack: ExitStack, spec: TableSpec, packed: np.ndarray
) -> None:
    held = ExitStack()
    with held:
        for _ in range(2):
            writer, reader = open_stream(held, server.rows_port)
            ask(writer, spec, np.arange(3))
            assert reader.read_chunk().data.num_rows == 3
        with pytest.raises(flight.FlightServerError, match=r"2 streams of ipv4:127\.0\.0\.1 are open, the limit is 2"):
            open_stream(stack, server.rows_port)[1].read_chunk()
        ask(writer, spec, np.arange(4))  # the others go on
    with closing(MemoryClient.connect(server.address)) as client:
        np.testing.assert_array_equal(client.lookup("engram.1", np.arange(9)).result().unique, packed[:9])


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


def test_admission_counts_by_client_and_forgets_who_left() -> None:
    admission = Admission("shard-0", SMALL)
    with admission.stream("a") as a, admission.stream("a"), admission.stream("b") as b:
        with pytest.raises(ResourceExhausted, match="3 streams of all clients"), admission.stream("c"):
            pass
        with a.request(13_600), b.request(13_000):
            with pytest.raises(ResourceExhausted, match="1 bytes of rows asked for while 13,600 are under way to a"):
                a.request(1).__enter__()
            with pytest.raises(ResourceExhausted, match="under way to b"):
                b.request(601).__enter__()
            with b.request(600):
                pass
        with a.request(1):
            pass
    assert not admission._streams
    assert not admission._bytes


@pytest.mark.parametrize(
    ("peer", "identity", "client"),
    [
        ("ipv4:10.0.0.7:51234", b"", "ipv4:10.0.0.7"),
        ("ipv6:[::1]:51234", b"", "ipv6:[::1]"),
        ("ipv4:10.0.0.7:51234", b"worker-7", "worker-7"),
    ],
)
def test_a_client_is_a_host_or_a_name(peer: str, identity: bytes, client: str) -> None:
    context = SimpleNamespace(peer=lambda: peer, peer_identity=lambda: identity)
    assert client_of(context) == client  # type: ignore[arg-type]


@pytest.mark.parametrize("field", list(vars(DoorLimits())))
def test_limits_are_above_zero(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}=0 must be above 0"):
        DoorLimits(**{field: 0})


def test_what_unpacks_to_more_than_the_bound_ends_its_stream_and_nothing_else(
    processes, stack: ExitStack, packed: np.ndarray
) -> None:
    process = processes.start()
    processes.addresses = [processes.ready(process)]
    client = processes.connect()
    client.lookup("engram.1", np.arange(9)).result()
    with ControlClient(processes.addresses[0]) as control:
        port = control.describe().rows_port
    rows = stack.enter_context(closing(ClientSecurity().flight_client("127.0.0.1", port)))
    writer, reader = rows.do_exchange(flight.FlightDescriptor.for_path("lookup", "engram.1"))
    writer.begin(IDS, options=pa.ipc.IpcWriteOptions(compression="zstd"))
    bomb = np.zeros(LIMIT_BYTES // 8 + 1, np.int64)  # a hundred kilobytes on the wire
    writer.write_batch(pa.record_batch([bomb], schema=IDS))
    with pytest.raises(flight.FlightServerError, match="malloc of size"):
        reader.read_chunk()
    with suppress(pa.ArrowException):
        writer.close()
    assert psutil.Process(process.pid).memory_info().rss < LIMIT_BYTES // 2
    np.testing.assert_array_equal(client.lookup("engram.1", np.arange(50)).result().unique, packed[:50])
