"""The service Learning of protos/memory.proto: gradients come in, and tables take steps."""

from __future__ import annotations

import grpc
import numpy as np
from numpy.typing import NDArray

from memory_service.errors import InvalidRequest
from memory_service.learning.learner import Learner, LearningRun
from memory_service.learning.optimizers import OptimizerConfig
from memory_service.learning.pushes import Push
from memory_service.protocol.row_messages import ids_from_bytes
from memory_service.server.answering import answering
from memory_service.shard.shard import Shard
from protos import memory_pb2 as pb
from protos import memory_pb2_grpc

_MOST_WAIT_S = 30.0


class LearningService(memory_pb2_grpc.LearningServicer):
    """The methods of the service: each decodes, calls the learner and encodes."""

    def __init__(self, learner: Learner, shard: Shard) -> None:
        self._learner = learner
        self._shard = shard

    @answering
    def Begin(self, request: pb.BeginRequest, context: grpc.ServicerContext) -> pb.BeginReply:  # noqa: N802
        """Begin an attempt; see Learner.begin."""
        return pb.BeginReply(version=self._learner.begin(_run(request)))

    @answering
    def Push(self, request: pb.PushRequest, context: grpc.ServicerContext) -> pb.PushReply:  # noqa: N802
        """Take gradients; see Learner.push."""
        rows = ids_from_bytes(request.row_ids, self._shard.table(request.table).spec.rows)
        push = Push(
            incarnation=request.incarnation,
            rank=request.rank,
            step=request.step,
            table=request.table,
            part=request.part,
            parts=request.parts,
            rate=request.learning_rate,
            rows=rows,
            gradients=_gradients(request.gradients, len(rows)),
        )
        self._learner.push(push)
        return pb.PushReply()

    @answering
    def Norm(self, request: pb.NormRequest, context: grpc.ServicerContext) -> pb.NormReply:  # noqa: N802
        """Wait for all ranks; see Learner.squared_norm."""
        wait_s = min(request.wait_ms / 1000, _MOST_WAIT_S)
        return pb.NormReply(squared_norm=self._learner.squared_norm(request.incarnation, request.step, wait_s))

    @answering
    def Commit(self, request: pb.CommitRequest, context: grpc.ServicerContext) -> pb.CommitReply:  # noqa: N802
        """Apply a step; see Learner.commit."""
        return pb.CommitReply(version=self._learner.commit(request.incarnation, request.step, request.scale))

    @answering
    def End(self, request: pb.EndRequest, context: grpc.ServicerContext) -> pb.EndReply:  # noqa: N802
        """End an attempt; see Learner.end."""
        self._learner.end(request.incarnation)
        return pb.EndReply()


def _run(request: pb.BeginRequest) -> LearningRun:
    given = request.optimizer
    try:
        optimizer = OptimizerConfig(given.name, given.beta1, given.beta2, given.eps)
        return LearningRun(
            request.incarnation, request.ranks, request.step, request.version, optimizer, request.snapshot_uri or None
        )
    except ValueError as error:
        raise InvalidRequest(str(error)) from error


def _gradients(content: bytes, rows: int) -> NDArray[np.float32]:
    """Gradients of a push, [rows, dim]."""
    if len(content) % (4 * max(rows, 1)) or (rows == 0 and content):
        raise InvalidRequest(f"gradients has {len(content)} bytes, which are not fp32 values of {rows} rows alike")
    values = np.frombuffer(content, "<f4")
    return values.reshape(rows, -1) if rows else values.reshape(0, 0)
