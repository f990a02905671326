"""The client's side of the service Learning, and how an attempt at training begins and ends on all shards."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass

from memory_service.control.client import ControlClient
from memory_service.control.each_shard import describing, each_shard
from memory_service.control.shard_directory import ShardDirectory
from memory_service.learning.optimizers import OptimizerConfig
from memory_service.placement.placement import Placement, ShardAddress
from memory_service.protocol.messages import ShardInfo
from memory_service.protocol.security import ClientSecurity
from memory_service.snapshots.snapshot import newest_version
from protos import memory_pb2 as pb
from protos import memory_pb2_grpc

_CALL_S = 30.0
_WAIT_S = 10.0  # of one call that waits for other ranks
_BEGIN_S = 3600.0  # a shard may have to read its blocks from a snapshot


@dataclass(frozen=True)
class Attempt:
    """An attempt at training, as all its workers know it."""

    incarnation: int
    """Number of the attempt, from 1; later attempts have higher numbers."""
    ranks: int
    """Number of workers."""
    step: int
    """Steps that the tables had taken when it began."""
    version: int
    """Version of the tables when it began; each step adds one."""


class LearningControl(ControlClient):
    """Calls the service Learning of one shard; errors are those of ControlClient and of the learner."""

    def __init__(self, address: str, shard: str = "shard", security: ClientSecurity | None = None) -> None:
        super().__init__(address, shard, security)
        self._learning = memory_pb2_grpc.LearningStub(self._channel)

    def begin(self, attempt: Attempt, optimizer: OptimizerConfig, snapshot_uri: str | None) -> None:
        """Begin an attempt; see Learner.begin."""
        request = pb.BeginRequest(
            incarnation=attempt.incarnation,
            ranks=attempt.ranks,
            step=attempt.step,
            version=attempt.version,
            optimizer=pb.OptimizerConfig(**asdict(optimizer)),
            snapshot_uri=snapshot_uri or "",
        )
        self._call(self._learning.Begin, request, _BEGIN_S)

    def push(self, request: pb.PushRequest) -> None:
        """Push a part; see Learner.push."""
        self._call(self._learning.Push, request, _CALL_S)

    def squared_norm(self, incarnation: int, step: int) -> float:
        """Wait for some seconds for all ranks; see Learner.squared_norm."""
        request = pb.NormRequest(incarnation=incarnation, step=step, wait_ms=int(1000 * _WAIT_S))
        return self._call(self._learning.Norm, request, _CALL_S + _WAIT_S).squared_norm

    def commit(self, incarnation: int, step: int, scale: float) -> None:
        """Apply a step; see Learner.commit."""
        self._call(self._learning.Commit, pb.CommitRequest(incarnation=incarnation, step=step, scale=scale), _CALL_S)

    def end(self, incarnation: int) -> None:
        """End an attempt; see Learner.end."""
        self._call(self._learning.End, pb.EndRequest(incarnation=incarnation), _BEGIN_S)


def begin_attempt(
    address: str,
    ranks: int,
    step: int,
    optimizer: OptimizerConfig,
    snapshot_uri: str | None = None,
    incarnation: int | None = None,
    timeout_s: float = 5.0,
    security: ClientSecurity | None = None,
) -> Attempt:
    """Have all shards of a memory begin an attempt at training, before any worker starts.

    Args:
        address: HOST:PORT of any shard.
        ranks: number of workers.
        step: steps that the tables have taken.
        optimizer: the optimizer of the rows.
        snapshot_uri: one generation of a snapshot to go back to; None to go on from what the shards hold.
        incarnation: number of the attempt; None for the current time, which is higher than that of any earlier one.
        timeout_s: timeout of describing the shards.
        security: TLS and token; None for what the environment says.

    Raises:
        MemoryServiceError: the first shard's error: a shard that does not answer, a table without optimizer state, or
            another optimizer's.
    """
    placement = ShardDirectory.read(address, timeout_s, security or ClientSecurity.from_environment()).placement
    infos = each_shard(placement.shards, describing(timeout_s), security)
    held = [table.version for info in infos if isinstance(info, ShardInfo) for table in info.tables.values()]
    seen = max([newest_version(snapshot_uri) if snapshot_uri else 0, *held])
    attempt = Attempt(incarnation or time.time_ns(), ranks, step, seen + 1)
    _on_all(placement, security, lambda shard: shard.begin(attempt, optimizer, snapshot_uri))
    return attempt


def end_attempt(address: str, attempt: Attempt, timeout_s: float = 5.0, security: ClientSecurity | None = None) -> None:
    """Have all shards of a memory end an attempt at training.

    Raises:
        MemoryServiceError: the first shard's error.
    """
    placement = ShardDirectory.read(address, timeout_s, security or ClientSecurity.from_environment()).placement
    _on_all(placement, security, lambda shard: shard.end(attempt.incarnation))


def _on_all(placement: Placement, security: ClientSecurity | None, call: Callable[[LearningControl], None]) -> None:
    def on(shard: ShardAddress) -> None:
        with closing(LearningControl(shard.address, shard.shard, security)) as control:
            call(control)

    with ThreadPoolExecutor(len(placement.shards)) as threads:
        list(threads.map(on, placement.shards))
