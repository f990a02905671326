"""The control door: what each method answers, and which gRPC code each error becomes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

import memory_service.server.health as health_module
from memory_service import (
    InvalidRequest,
    MemoryClient,
    Placement,
    ShardAddress,
    SnapshotError,
    TableSpec,
    UnknownTable,
    WrongEpoch,
)
from memory_service.control.client import ControlClient
from memory_service.protocol.messages import placement_from_proto, placement_to_proto
from memory_service.protocol.reports import Prepared
from memory_service.server.config import ServeConfig
from memory_service.server.control_door import SERVICE
from memory_service.server.process import start
from memory_service.server.server import ShardServer
from memory_service.shard.shard import Shard
from protos import memory_pb2 as pb
from protos import memory_pb2_grpc


@pytest.fixture
def server() -> Iterator[ShardServer]:
    with ShardServer(Shard("shard-0")) as server:
        yield server


@pytest.fixture
def control(server: ShardServer, stack: ExitStack) -> ControlClient:
    return stack.enter_context(ControlClient(server.address, "shard-0"))


@pytest.fixture
def channel(server: ShardServer, stack: ExitStack) -> grpc.Channel:
    return stack.enter_context(grpc.insecure_channel(server.address))


def placement_of(server: ShardServer, spec: TableSpec, epoch: int = 1) -> Placement:
    return Placement.build(epoch, [ShardAddress("shard-0", server.address)], [spec])


def test_a_shard_is_loaded_and_activated_from_outside(
    server: ShardServer, control: ControlClient, snapshot: Path, spec: TableSpec, packed: np.ndarray
) -> None:
    empty = control.describe()
    assert (empty.shard, empty.incarnation, empty.placement, empty.tables) == (
        "shard-0",
        server.incarnation,
        None,
        {},
    )
    placement = placement_of(server, spec)
    size = spec.rows * spec.row_bytes
    assert control.prepare(placement, snapshot_uri=snapshot) == Prepared(loaded=spec.blocks, bytes=size)
    assert control.prepare(placement) == Prepared(kept=spec.blocks)
    control.activate(placement)
    info = control.describe()
    assert info.placement is not None
    assert info.placement.shards == placement.shards
    assert info.rows_port == server.rows_port
    assert info.tables["engram.1"].spec == spec
    assert info.tables["engram.1"].blocks == tuple(range(spec.blocks))
    client = MemoryClient.connect(server.address)
    np.testing.assert_array_equal(client.lookup("engram.1", np.arange(9)).result().unique, packed[:9])
    client.close()
    stats = control.stats()
    assert (stats.requests, stats.rows, stats.bytes) == (1, 9, 9 * spec.row_bytes)
    assert stats == replace(server.shard.stats(), incarnation=server.incarnation)
    assert stats.stages["gather"].count == 1


def test_errors_come_back_as_what_they_were(
    server: ShardServer, control: ControlClient, snapshot: Path, spec: TableSpec, tmp_path: Path, make_spec
) -> None:
    with pytest.raises(SnapshotError, match="no such directory"):
        control.prepare(placement_of(server, spec), snapshot_uri=tmp_path / "nowhere")
    with pytest.raises(UnknownTable, match=r"engram\.3"):
        control.prepare(placement_of(server, make_spec("engram.3")), snapshot_uri=snapshot)
    with pytest.raises(WrongEpoch, match="does not hold the blocks"):
        control.activate(placement_of(server, spec))
    control.prepare(placement_of(server, spec), snapshot_uri=snapshot)
    control.activate(placement_of(server, spec, 5))
    with pytest.raises(WrongEpoch, match="does not go back to 4"):
        control.activate(placement_of(server, spec, 4))
    with pytest.raises(UnknownTable, match=r"engram\.3"):
        control.snapshot(tmp_path / "out", "engram.3", "x-", [0], {})
    with pytest.raises(SnapshotError, match="cannot use"):
        control.snapshot(snapshot / "manifest.json", "engram.1", "x-", [0], {})


def test_each_error_is_answered_with_its_grpc_code(
    channel: grpc.Channel, server: ShardServer, snapshot: Path, spec: TableSpec
) -> None:
    stub = memory_pb2_grpc.MemoryShardStub(channel)
    good = placement_to_proto(placement_of(server, spec, 5))
    wrong = pb.Placement(epoch=6, shards=good.shards, tables=[pb.TablePlacement(table="engram.1", shards=b"xyz")])
    strange = pb.Placement(
        epoch=6, shards=good.shards, tables=[pb.TablePlacement(table="engram.3", replicas=1, shards=b"\0\0")]
    )

    def prepare(placement: pb.Placement, uri: str) -> pb.PrepareReply:
        return stub.Prepare(pb.PrepareRequest(snapshot_uri=uri, placement=placement))

    prepare(good, str(snapshot))
    stub.Activate(pb.ActivateRequest(placement=good))
    older = placement_to_proto(placement_of(server, spec, 4))
    for call, code in [
        (lambda: stub.Activate(pb.ActivateRequest(placement=wrong)), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda: stub.Activate(pb.ActivateRequest()), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda: stub.Activate(pb.ActivateRequest(placement=older)), grpc.StatusCode.FAILED_PRECONDITION),
        (lambda: prepare(strange, "/nowhere"), grpc.StatusCode.FAILED_PRECONDITION),
        (lambda: prepare(strange, str(snapshot)), grpc.StatusCode.NOT_FOUND),
        (lambda: stub.Retire(pb.RetireRequest(epoch=6)), grpc.StatusCode.FAILED_PRECONDITION),
        (lambda: stub.Snapshot(pb.SnapshotRequest(uri="/tmp", table="engram.3")), grpc.StatusCode.NOT_FOUND),
    ]:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is code, caught.value


def test_a_bug_becomes_internal_and_the_shard_goes_on(
    server: ShardServer, control: ControlClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(server.shard, "stats", lambda: 1 / 0)
        with pytest.raises(Exception, match=r"INTERNAL.*Stats failed"):
            control.stats()
    assert control.stats().requests == 0


def test_health_follows_activation(server: ShardServer, channel: grpc.Channel, snapshot: Path, spec: TableSpec) -> None:
    health = health_pb2_grpc.HealthStub(channel)

    def status(service: str) -> int:
        return health.Check(health_pb2.HealthCheckRequest(service=service)).status

    assert status("") == status(SERVICE) == health_pb2.HealthCheckResponse.NOT_SERVING
    server.shard.prepare(placement_of(server, spec), snapshot_uri=snapshot)
    server.shard.activate(placement_of(server, spec))
    assert status("") == status(SERVICE) == health_pb2.HealthCheckResponse.SERVING


def test_reflection_describes_the_service(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert SERVICE in database.get_services()
    service = DescriptorPool(database).FindServiceByName(SERVICE)
    assert set(service.methods_by_name) == {"Describe", "Prepare", "Activate", "Retire", "Snapshot", "Stats"}


def test_a_taken_port_is_named(server: ShardServer) -> None:
    port = int(server.address.rpartition(":")[2])
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
        ShardServer(Shard("shard-1"), port=port).start()
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{server.rows_port}"):
        ShardServer(Shard("shard-1"), rows_port=server.rows_port).start()


def test_every_start_is_another_incarnation(server: ShardServer) -> None:
    with ShardServer(Shard("shard-0")) as other:
        assert other.incarnation != server.incarnation
        assert other.address != server.address


def test_stop_ends_wait_and_may_be_repeated() -> None:
    server = ShardServer(Shard("shard-0")).start()
    assert not server.wait(0)
    assert server.stop()
    assert server.wait(0)
    assert server.stop()


def test_a_placement_of_the_wrong_length_is_refused(server: ShardServer, spec: TableSpec) -> None:
    message = placement_to_proto(placement_of(server, spec))
    message.tables[0].shards = message.tables[0].shards[:-1]
    with pytest.raises(InvalidRequest, match="not a placement"):
        placement_from_proto(message)


def test_what_cannot_be_decoded_is_refused_and_the_call_ends(channel: grpc.Channel) -> None:
    """grpcio by itself would keep a call whose message it cannot decode for ever."""
    health_check, reflect = (
        "/grpc.health.v1.Health/Check",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    )
    for method in ("/engram.memory.v1.MemoryShard/Describe", health_check, reflect):
        call = channel.stream_stream(method)(iter([b"\xff"]), timeout=30)
        with pytest.raises(grpc.RpcError, match="cannot be decoded") as raised:
            next(call)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_shard_serves_without_the_standard_services(
    monkeypatch: pytest.MonkeyPatch, snapshot: Path, spec: TableSpec
) -> None:
    monkeypatch.setattr(health_module, "find_spec", lambda package: None)
    with start(ServeConfig(snapshot=str(snapshot))) as server, closing(MemoryClient.connect(server.address)) as client:
        assert len(client.lookup(spec.name, np.arange(3)).result(10).unique) == 3
