"""A shard that answers as a script says: right, in other orders, or wrong. Generated stubs and plain grpcio."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures

import grpc
import numpy as np

from memory_service import TableSpec
from memory_service.protocol.messages import spec_to_proto
from protos import memory_pb2 as pb
from protos import memory_pb2_grpc

Message = pb.LookupReply | bytes
Script = Callable[[Iterator[pb.LookupRequest], grpc.ServicerContext], Iterable[Message]]
"""What a shard sends down one stream, given the requests that come up it."""


class ScriptedShard(memory_pb2_grpc.MemoryShardServicer):
    """The only shard of a memory with one table, of which it says that it holds every block.

    Every stream is answered by `script` as it is when the stream begins. `requests` are all requests that came.
    """

    def __init__(self, spec: TableSpec, packed: np.ndarray | None = None) -> None:
        self.spec = spec
        self.packed = packed
        self.version = 1
        self.epoch = 1
        self.script: Script = self.honest
        self.requests: list[pb.LookupRequest] = []
        self.described = 0
        self.open_streams = 0
        self._server = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
        memory_pb2_grpc.add_MemoryShardServicer_to_server(self, self._server)
        lookup = grpc.stream_stream_rpc_method_handler(self._lookup, pb.LookupRequest.FromString, _serialise)
        handler = grpc.method_handlers_generic_handler("engram.memory.v1.Rows", {"Lookup": lookup})
        self._server.add_generic_rpc_handlers((handler,))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{self.port}"
        self._stopping = threading.Event()
        self._server.start()

    def Describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.DescribeReply:  # noqa: N802
        """See memory.proto."""
        self.described += 1
        blocks = range(self.spec.blocks)
        return pb.DescribeReply(
            shard="shard-0",
            incarnation="scripted",
            rows_port=self.port,
            placement=pb.Placement(
                epoch=self.epoch,
                shards=[pb.ShardAddress(shard="shard-0", address=self.address)],
                tables=[pb.TablePlacement(table=self.spec.name, replicas=1, shards=bytes(2 * len(blocks)))],
            ),
            tables=[
                pb.HeldTable(
                    spec=spec_to_proto(self.spec),
                    version=self.version,
                    blocks=blocks,
                    fingerprint=bytes.fromhex(self.spec.fingerprint),
                    row_bytes=self.spec.row_bytes,
                )
            ],
            implementation="scripted",
        )

    def _lookup(self, requests: Iterator[pb.LookupRequest], context: grpc.ServicerContext) -> Iterator[Message]:
        self.open_streams += 1
        try:
            yield from self.script(self._noted(requests), context)
        finally:
            self.open_streams -= 1

    def _noted(self, requests: Iterator[pb.LookupRequest]) -> Iterator[pb.LookupRequest]:
        for request in requests:
            self.requests.append(request)
            yield request

    def ids(self, request: pb.LookupRequest) -> np.ndarray:
        """The ids of a request."""
        return np.frombuffer(request.row_ids, "<u4" if self.spec.rows <= 1 << 32 else "<u8").astype(np.int64)

    def reply(
        self, request: pb.LookupRequest, low: int = 0, high: int | None = None, **changes: object
    ) -> pb.LookupReply:
        """The reply with these of a request's rows."""
        assert self.packed is not None, "this shard has no rows"
        fields = {
            "request_id": request.request_id,
            "epoch": self.epoch,
            "version": self.version,
            "first_row": low,
            "rows": self.packed[self.ids(request)[low:high]].tobytes(),
        }
        return pb.LookupReply(**{**fields, **changes})  # type: ignore[arg-type]

    def honest(self, requests: Iterator[pb.LookupRequest], context: grpc.ServicerContext) -> Iterator[Message]:
        """Every request in one reply, in order."""
        return (self.reply(request) for request in requests)

    def stop(self) -> None:
        """Break off every call and stop."""
        self._stopping.set()
        self._server.stop(None).wait()

    def wait(self) -> None:
        """In a script: say nothing more until the shard stops."""
        self._stopping.wait()


def _serialise(message: Message) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()
