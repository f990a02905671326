"""The rows door of a shard: the service Rows of protos/memory.proto, in Python."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from memory_service.errors import (
    FingerprintMismatch,
    InvalidRequest,
    MemoryServiceError,
    RequestTooLarge,
    ShardUnavailable,
)
from memory_service.memory import require_table
from memory_service.protocol.row_messages import (
    SERVICE,
    ids_from_bytes,
    max_request_bytes,
    rows_a_chunk,
    with_rows,
)
from memory_service.protocol.security import ServerSecurity
from memory_service.protocol.status import refuse, status_of
from memory_service.server.limits import Admission, DoorLimits, Visitor, client_of
from memory_service.server.listening import bind
from memory_service.shard.block_copy import give_blocks
from memory_service.shard.shard import Shard
from protos import memory_pb2 as pb

_REFUSING = 64  # threads for calls beyond the limit of streams, which get an error that names it
_MESSAGE_LENGTH = 1000  # of an error in a reply

_log = logging.getLogger(__name__)


class RowsDoor:
    """The gRPC server of a shard's rows, listening from construction on."""

    implementation = "python"

    def __init__(
        self,
        shard: Shard,
        host: str,
        port: int,
        security: ServerSecurity,
        limits: DoorLimits,
        admission: Admission,
    ) -> None:
        threads = limits.streams + _REFUSING
        self._shard = shard
        self._admission = admission
        self._lock = threading.Lock()
        self._streams: set[_Stream] = set()
        self._stopping = False
        self._server = grpc.server(
            futures.ThreadPoolExecutor(threads, thread_name_prefix="rows"),
            interceptors=security.interceptors(open_services=[]),
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", max_request_bytes(shard.config.max_rows)),
            ],
            maximum_concurrent_rpcs=threads,
        )
        methods = {
            "Lookup": grpc.stream_stream_rpc_method_handler(self._lookup),
            "Blocks": grpc.unary_stream_rpc_method_handler(self._blocks),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        self.port = bind(self._server, host, port, security.credentials())
        self._server.start()

    def stop(self, grace_s: float) -> bool:
        """Stop listening, and end every stream once the requests that are being answered have their rows.

        Returns:
            Whether all streams have ended within `grace_s`; those that have not are broken off.
        """
        deadline = time.monotonic() + grace_s
        with self._lock:
            self._stopping = True
            streams = list(self._streams)
        ended = self._server.stop(grace_s)
        for stream in streams:
            stream.leave()
        return ended.wait(grace_s) and time.monotonic() < deadline  # later, gRPC has broken them off

    def _lookup(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Answer one client's lookups until it ends the stream."""
        with _refusing(context), self._admission.stream(client_of(context)) as visitor, self._shard.counters.stream():
            stream = _Stream(self._shard, visitor, context)
            with self._known(stream):
                yield from stream.replies(requests)

    def _blocks(self, message: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Send whole blocks to another shard."""
        with _refusing(context), self._admission.stream(client_of(context)):
            wanted = _decode(pb.BlocksRequest, message)
            table = require_table(self._shard.tables, wanted.table)
            if wanted.fingerprint.hex() != table.spec.fingerprint:
                raise FingerprintMismatch(f"table {wanted.table!r} on {self._shard.name} has another fingerprint")
            if len(wanted.blocks) > table.spec.blocks:
                raise RequestTooLarge(f"{len(wanted.blocks)} blocks of table {wanted.table!r}: it has fewer")
            yield from give_blocks(table, wanted.blocks)

    @contextmanager
    def _known(self, stream: _Stream) -> Iterator[None]:
        """Register a stream, for as long as it lasts, to be ended by `stop`."""
        with self._lock:
            if self._stopping:
                stream.leave()
            self._streams.add(stream)
        try:
            yield
        finally:
            with self._lock:
                self._streams.discard(stream)


@contextmanager
def _refusing(context: grpc.ServicerContext) -> Iterator[None]:
    """End a call that raises an error with the status of the error."""
    try:
        yield
    except MemoryServiceError as error:
        refuse(context, error)


class _Stream:
    """One client's lookups. Replies come in the order of the requests, and errors are replies."""

    def __init__(self, shard: Shard, visitor: Visitor, context: grpc.ServicerContext) -> None:
        self._shard = shard
        self._counters = shard.counters
        self._visitor = visitor
        self._context = context
        self._queue = QueueClock()
        self._lock = threading.Lock()
        self._busy = False
        self._leaving = False

    def replies(self, requests: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the replies to requests until the client ends the stream.

        Raises:
            InvalidRequest: a message is no LookupRequest, or has no request_id.
        """
        for message in requests:
            read = time.perf_counter()
            with self._lock:
                self._busy = True
            request = _decode(pb.LookupRequest, message)
            if not request.request_id:
                raise InvalidRequest("the request has request_id 0, by which a shard says that it stops: count from 1")
            yield from self._answer(request)
            self._counters.took(time.perf_counter() - read)
            with self._lock:
                self._busy = self._leaving  # if so, until the client ends the stream
            if self._busy:
                yield self._goodbye()

    def leave(self) -> None:
        """Tell the client that this shard is stopping, or end the stream if nothing is being answered."""
        with self._lock:
            self._leaving = True
            idle = not self._busy
        if idle:
            self._context.cancel()

    def _goodbye(self) -> bytes:
        status, _ = status_of(ShardUnavailable(""))
        return pb.LookupReply(status=status, message=f"{self._shard.name} is stopping").SerializeToString()

    def _answer(self, request: pb.LookupRequest) -> Iterator[bytes]:
        waited_us = self._queue.waited_us(request.sent_us, time.monotonic_ns() // 1000)
        self._counters.spent("queue", waited_us * 1e-6)
        if waited_us > request.timeout_ms * 1000:
            return self._counters.expired()
        try:
            spec = self._shard.table(request.table).spec
            ids = ids_from_bytes(request.row_ids, spec.rows)
            with self._visitor.request(ids.nbytes + len(ids) * spec.row_bytes):
                rows, epoch, version = self._shard.lookup(
                    request.table, ids, request.epoch, request.fingerprint.hex(), request.min_version
                )
                yield from self._write(
                    pb.LookupReply(request_id=request.request_id, epoch=epoch, version=version), rows
                )
        except Exception as error:
            if not isinstance(error, MemoryServiceError):
                _log.exception("lookup in table %.200r failed", request.table)
            status, _ = status_of(error)
            self._counters.refused(error)
            yield pb.LookupReply(
                request_id=request.request_id,
                status=status,
                message=f"{error!s:.{_MESSAGE_LENGTH}}",
                epoch=self._shard.epoch,
            ).SerializeToString()

    def _write(self, reply: pb.LookupReply, rows: NDArray[np.uint8]) -> Iterator[bytes]:
        """Yield the replies that carry these rows: at least one."""
        start = time.perf_counter()
        size = rows_a_chunk(rows.shape[1])
        for low in range(0, max(1, len(rows)), size):
            reply.first_row = low
            yield with_rows(reply, rows[low : low + size])
        self._counters.spent("write", time.perf_counter() - start)


class QueueClock:
    """Measures how long requests waited to be read, without comparing the clocks of two machines.

    The smallest difference between arrival and sending so far is taken for a request that did not wait.
    """

    def __init__(self) -> None:
        self._least: int | None = None

    def waited_us(self, sent_us: int, now_us: int) -> int:
        """Return the microseconds by which this request took longer than the fastest so far."""
        delay = now_us - sent_us
        self._least = delay if self._least is None else min(self._least, delay)
        return delay - self._least


def _decode(kind: type[pb.LookupRequest] | type[pb.BlocksRequest], message: bytes) -> Any:
    try:
        return kind.FromString(message)
    except (DecodeError, ValueError) as error:  # ValueError for text that is not UTF-8
        raise InvalidRequest(f"the message is no {kind.DESCRIPTOR.name}: {error}") from error
