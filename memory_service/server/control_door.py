"""The control door of a shard: protos/memory.proto over gRPC, with the standard health and reflection services."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent import futures
from dataclasses import asdict, replace

import grpc

from memory_service.learning.learner import Learner
from memory_service.protocol.messages import (
    blocks_from_proto,
    blocks_to_proto,
    placement_from_proto,
    placement_to_proto,
    spec_to_proto,
    stats_to_proto,
)
from memory_service.protocol.security import ServerSecurity
from memory_service.server.answering import answering
from memory_service.server.call_guard import CallGuard
from memory_service.server.health import HEALTH, StandardServices
from memory_service.server.learning_service import LearningService
from memory_service.server.limits import Admission, DoorLimits
from memory_service.server.listening import bind
from memory_service.server.native_rows_door import NativeRowsDoor
from memory_service.server.rows_door import RowsDoor
from memory_service.shard.shard import Shard
from memory_service.shard.table import ShardTable
from protos import memory_pb2 as pb
from protos import memory_pb2_grpc

SERVICE = "engram.memory.v1.MemoryShard"


class ControlDoor:
    """The gRPC server of a shard, listening from construction on."""

    def __init__(
        self,
        shard: Shard,
        incarnation: str,
        rows: RowsDoor | NativeRowsDoor,
        host: str,
        port: int,
        security: ServerSecurity,
        limits: DoorLimits,
        admission: Admission,
    ) -> None:
        message_bytes = limits.control_message_bytes
        options = [("grpc.max_send_message_length", message_bytes), ("grpc.max_receive_message_length", message_bytes)]
        guard = CallGuard(admission, limits.control_message_seconds)
        self._server = grpc.server(
            # A thread for every admitted call, so that calls that take long or wait for a message delay no other.
            futures.ThreadPoolExecutor(limits.control_calls, thread_name_prefix="control"),
            interceptors=[*security.interceptors(open_services=[HEALTH]), guard],
            options=[("grpc.so_reuseport", 0), *options],
            maximum_concurrent_rpcs=limits.control_calls,
        )
        memory_pb2_grpc.add_MemoryShardServicer_to_server(_Servicer(shard, incarnation, rows), self._server)
        memory_pb2_grpc.add_LearningServicer_to_server(LearningService(Learner(shard), shard), self._server)
        self._standard = StandardServices(self._server, SERVICE)
        self.port = bind(self._server, host, port, security.credentials())
        self._server.start()
        shard.when_serving(lambda: self._standard.set_serving(True))

    def stop(self, grace_s: float) -> threading.Event:
        """Refuse new calls; the returned event is set once the calls under way have ended, within `grace_s`."""
        self._standard.leave()
        return self._server.stop(grace_s)


class _Servicer(memory_pb2_grpc.MemoryShardServicer):
    """The methods of memory.proto: each decodes, calls the shard and encodes."""

    def __init__(self, shard: Shard, incarnation: str, rows: RowsDoor | NativeRowsDoor) -> None:
        self._shard = shard
        self._incarnation = incarnation
        self._rows = rows

    @answering
    def Describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.DescribeReply:  # noqa: N802
        placement = self._shard.placement
        return pb.DescribeReply(
            shard=self._shard.name,
            incarnation=self._incarnation,
            rows_port=self._rows.port,
            placement=placement_to_proto(placement) if placement else None,
            tables=_held_to_proto(self._shard.tables.values()),
            node=self._shard.config.node,
            implementation=self._rows.implementation,
        )

    @answering
    def Prepare(self, request: pb.PrepareRequest, context: grpc.ServicerContext) -> pb.PrepareReply:  # noqa: N802
        current = placement_from_proto(request.current) if request.HasField("current") else None
        prepared = self._shard.prepare(placement_from_proto(request.placement), current, request.snapshot_uri or None)
        return pb.PrepareReply(**vars(prepared))

    @answering
    def Activate(self, request: pb.ActivateRequest, context: grpc.ServicerContext) -> pb.ActivateReply:  # noqa: N802
        self._shard.activate(placement_from_proto(request.placement))
        return pb.ActivateReply()

    @answering
    def Retire(self, request: pb.RetireRequest, context: grpc.ServicerContext) -> pb.RetireReply:  # noqa: N802
        self._shard.retire(request.epoch)
        return pb.RetireReply()

    @answering
    def Snapshot(self, request: pb.SnapshotRequest, context: grpc.ServicerContext) -> pb.SnapshotReply:  # noqa: N802
        base = blocks_from_proto(request.base)
        version, entries = self._shard.write_snapshot(request.uri, request.table, request.prefix, request.blocks, base)
        return pb.SnapshotReply(version=version, blocks=blocks_to_proto(entries))

    @answering
    def Stats(self, request: pb.StatsRequest, context: grpc.ServicerContext) -> pb.StatsReply:  # noqa: N802
        block_rows = self._shard.block_rows() if request.blocks else {}
        return stats_to_proto(replace(self._shard.stats(), incarnation=self._incarnation, block_rows=block_rows))


def _held_to_proto(tables: Iterable[ShardTable]) -> Iterator[pb.HeldTable]:
    """The messages of the tables that a shard holds."""
    for table in tables:
        shared = pb.SharedTable(**asdict(found)) if (found := table.shared) else None
        yield pb.HeldTable(
            spec=spec_to_proto(table.spec),
            version=table.version,
            blocks=table.blocks.tolist(),
            shared=shared,
            fingerprint=bytes.fromhex(table.spec.fingerprint),
            row_bytes=table.spec.row_bytes,
        )
