"""The client's side of a shard's control door."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from memory_service.errors import MemoryServiceError, RequestTooLarge, ResourceExhausted, ShardUnavailable
from memory_service.placement.placement import Placement
from memory_service.protocol.messages import (
    MAX_MESSAGE_BYTES,
    ShardInfo,
    blocks_from_proto,
    blocks_to_proto,
    info_from_proto,
    placement_to_proto,
    stats_from_proto,
)
from memory_service.protocol.reports import Prepared, ShardStats
from memory_service.protocol.security import ClientSecurity
from memory_service.protocol.status import error_in
from memory_service.snapshots.manifest import BlockEntry
from protos import memory_pb2 as pb
from protos import memory_pb2_grpc

_RETRIES = {
    "methodConfig": [
        {
            "name": [
                {"service": "engram.memory.v1.MemoryShard", "method": "Describe"},
                {"service": "engram.memory.v1.MemoryShard", "method": "Stats"},
            ],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
            },
        }
    ]
}
"""gRPC retries calls that only read: when hundreds of clients connect at once, a shard refuses some of their calls."""
_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.service_config", json.dumps(_RETRIES)),
    ("grpc.use_local_subchannel_pool", 1),  # a shard that came back is not met with an older channel's back-off
]


class ShardUnresponsive(ShardUnavailable):
    """A shard that accepts a call and does not answer it, as opposed to one that refuses connections."""


class ControlClient:
    """Calls one shard at its control door.

    Every call raises the error that the shard answers with, or, for all of them:

    Raises:
        ShardUnavailable: the shard cannot be reached; the message names it.
        ShardUnresponsive: the shard does not answer in time.
        ResourceExhausted: the shard has too many calls under way.
    """

    def __init__(self, address: str, shard: str = "shard", security: ClientSecurity | None = None) -> None:
        """Make a client; it connects with the first call.

        Args:
            address: HOST:PORT of the control door.
            shard: name of the shard in errors.
            security: TLS and token of the connection; None for what the environment says.

        Raises:
            InvalidRequest: the address is not valid.
        """
        self.address = address
        self._shard = shard
        self._security = security or ClientSecurity.from_environment()
        self._channel = self._security.channel(address, _OPTIONS)
        self._stub = memory_pb2_grpc.MemoryShardStub(self._channel)

    def describe(self, timeout_s: float = 5.0) -> ShardInfo:
        """Ask what the shard is and holds."""
        return info_from_proto(self._call(self._stub.Describe, pb.DescribeRequest(), timeout_s))

    def prepare(
        self,
        placement: Placement,
        current: Placement | None = None,
        snapshot_uri: str | Path | None = None,
        timeout_s: float = 3600.0,
    ) -> Prepared:
        """Have the shard get its blocks of a placement; see Shard.prepare. The shard reads the snapshot itself."""
        request = pb.PrepareRequest(
            placement=placement_to_proto(placement),
            current=placement_to_proto(current) if current else None,
            snapshot_uri=str(snapshot_uri or ""),
        )
        reply = self._call(self._stub.Prepare, request, timeout_s)
        return Prepared(reply.kept, reply.copied, reply.loaded, reply.bytes)

    def activate(self, placement: Placement, timeout_s: float = 5.0) -> None:
        """Have the shard activate a placement; see Shard.activate."""
        self._call(self._stub.Activate, pb.ActivateRequest(placement=placement_to_proto(placement)), timeout_s)

    def retire(self, epoch: int, timeout_s: float = 5.0) -> None:
        """Have the shard stop serving older epochs; see Shard.retire."""
        self._call(self._stub.Retire, pb.RetireRequest(epoch=epoch), timeout_s)

    def snapshot(
        self,
        uri: str | Path,
        table: str,
        prefix: str,
        blocks: Sequence[int],
        base: Mapping[int, BlockEntry],
        timeout_s: float = 3600.0,
    ) -> tuple[int, dict[int, BlockEntry]]:
        """Have the shard write blocks of a table; see Shard.write_snapshot.

        Returns:
            The table's version, and the entries of the blocks by number.
        """
        request = pb.SnapshotRequest(
            uri=str(uri), table=table, prefix=prefix, blocks=blocks, base=blocks_to_proto(base)
        )
        reply = self._call(self._stub.Snapshot, request, timeout_s)
        return reply.version, blocks_from_proto(reply.blocks)

    def stats(self, timeout_s: float = 5.0, blocks: bool = False) -> ShardStats:
        """Ask for the shard's counters; with `blocks`, requested rows by block too."""
        return stats_from_proto(self._call(self._stub.Stats, pb.StatsRequest(blocks=blocks), timeout_s))

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: Any, request: Any, timeout_s: float) -> Any:
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise self._meaning(error, timeout_s) from error

    def _meaning(self, error: Any, timeout_s: float) -> MemoryServiceError:
        if (refusal := error_in(error)) is not None:
            return refusal
        where = f"{self._shard} at {self.address}"
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            remedy = self._security.remedy(error.details())
            return ShardUnavailable(f"{where} cannot be reached: {remedy} ({error.details()})", None, self._shard)
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return ShardUnresponsive(f"{where} did not answer within {timeout_s:g} s", None, self._shard)
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return _beyond_limit(where, error.details())
        return MemoryServiceError(f"{where}: {error.code().name}: {error.details()}")


def _beyond_limit(where: str, details: str) -> MemoryServiceError:
    """The error for a call that gRPC refused by itself, because of one of DoorLimits."""
    if "larger than max" in details:
        return RequestTooLarge(f"{where}: {details}: start the shard with a higher control_message_bytes")
    return ResourceExhausted(
        f"{where}: {details} (control_calls): try again later, or start the shard with a higher control_calls"
    )
