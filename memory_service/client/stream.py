"""The client's end of a row stream: requests of many lookups to one shard, in Python."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import numpy as np
from numpy.typing import NDArray

from memory_service.control.client import ControlClient
from memory_service.errors import MemoryServiceError, ResourceExhausted, ShardError, ShardUnavailable
from memory_service.placement.placement import ShardAddress
from memory_service.protocol.addresses import Address, parse_address
from memory_service.protocol.row_messages import LOOKUP, MESSAGE_BYTES, as_rows, ids_to_bytes, split_rows
from memory_service.protocol.security import ClientSecurity
from memory_service.protocol.status import error_in, error_of
from memory_service.tables.spec import TableSpec
from protos import memory_pb2 as pb

OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),  # no back-off inherited from a channel to an earlier process
    ("grpc.min_reconnect_backoff_ms", 2000),  # for one attempt to connect
    ("grpc.http2.lookahead_bytes", 8 << 20),  # a large reply need not wait for the window to grow
    ("grpc.experimental.tcp_read_chunk_size", 1 << 20),  # fewer and larger reads of it
    ("grpc.experimental.tcp_max_read_chunk_size", 4 << 20),
]


class RowRequest(Protocol):
    """Rows that one lookup requests from one shard, as the stream sees them."""

    spec: TableSpec
    ids: NDArray[np.int64]
    epoch: int
    request_id: int
    """Number of the request on its stream; set by the stream."""

    @property
    def deadline(self) -> float:
        """Moment of the monotonic clock after which the rows are no longer wanted."""

    @property
    def min_version(self) -> int:
        """Oldest version of the table that is wanted."""

    def land(self, parts: Sequence[NDArray[np.uint8]], version: int) -> None:
        """Take the rows, in the order of the ids, and the version of the table that they belong to."""

    def fail(self, error: MemoryServiceError) -> None:
        """Learn that the rows will not come."""


class Stream(Protocol):
    """Requests of many lookups to one shard."""

    @property
    def retired(self) -> bool:
        """Whether this stream takes no more requests."""

    def stalled(self, limit_s: float) -> bool:
        """Whether the shard has been silent for `limit_s` seconds while an answer was due."""

    def send(self, request: RowRequest) -> None:
        """Send a request; its `land` or `fail` is called from another thread, unless it is forgotten first."""

    def forget(self, request: RowRequest) -> None:
        """Drop a request whose rows are no longer wanted; a late reply to it is ignored."""

    def break_off(self, why: str, cause: MemoryServiceError | None = None) -> None:
        """Take no more requests, fail the pending ones and end the stream; `cause` may be a refusal of the shard."""

    def join(self, timeout_s: float) -> bool:
        """Wait until a stream that was broken off has ended; False if `timeout_s` passed first."""


@dataclass
class _Asked:
    """A request, and the rows of it that are here."""

    request: RowRequest
    parts: list[NDArray[np.uint8]] = field(default_factory=list)
    count: int = 0
    version: int = 0


class RowStream:
    """Sends requests and hands out their replies. It opens in the background and, once retired, is replaced by another.

    Two threads serve it: one of its own opens the stream and reads, one of gRPC's writes, because writing to a shard
    that has stopped reading blocks, which a lookup must not.
    """

    def __init__(
        self,
        shard: ShardAddress,
        connect_timeout_s: float,
        security: ClientSecurity,
        newer_epoch: Callable[[int], None] = lambda epoch: None,
    ) -> None:
        self._shard = shard
        self._connect_timeout_s = connect_timeout_s
        self._security = security
        self._newer_epoch = newer_epoch
        self._lock = threading.Lock()
        self._pending: dict[int, _Asked] = {}
        self._outbox: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._next_id = 1
        self._retired: str | None = None
        self._refusal: str | None = None  # not the error: its traceback would keep the connection open
        self._call: Any = None
        self._silent_since: float | None = None  # since when an answer, to any request, has been due
        self._receiver = threading.Thread(target=self._run, name=f"rows-{shard.shard}", daemon=True)
        self._receiver.start()

    @property
    def retired(self) -> bool:
        """Whether this stream takes no more requests."""
        return self._retired is not None

    def stalled(self, limit_s: float) -> bool:
        """Whether the shard has been silent for `limit_s` seconds while an answer was due."""
        since = self._silent_since
        return since is not None and time.monotonic() - since > limit_s

    def send(self, request: RowRequest) -> None:
        """Send a request; its `land` or `fail` is called from another thread, unless it is forgotten first."""
        with self._lock:
            retired = self._retired
            if retired is None:
                request.request_id = self._next_id
                self._pending[self._next_id] = _Asked(request)
                self._next_id += 1
                self._silent_since = self._silent_since or time.monotonic()
                self._outbox.put(request.request_id)
        if retired is not None:
            request.fail(self._unavailable(retired, request))

    def forget(self, request: RowRequest) -> None:
        """Drop a request whose rows are no longer wanted; a late reply to it is ignored."""
        with self._lock:
            asked = self._pending.get(request.request_id)
            if asked is not None and asked.request is request:
                del self._pending[request.request_id]

    def break_off(self, why: str, cause: MemoryServiceError | None = None) -> None:
        """Take no more requests, fail the pending ones and end the stream; `cause` may be a refusal of the shard."""
        if isinstance(cause, ResourceExhausted):  # a limit, for which no other replica must be asked
            self._refusal = self._refusal or str(cause)
        self._retire(why)
        with self._lock:
            pending, self._pending = list(self._pending.values()), {}
            call = self._call
        if call is not None:
            call.cancel()
        for asked in pending:
            asked.request.fail(self._unavailable(self._retired or why, asked.request))

    def _retire(self, why: str) -> None:
        """Take no more requests; the shard ends the stream once it has answered the pending ones."""
        with self._lock:
            if self._retired is None:
                self._retired = why
                self._outbox.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait until a stream that was broken off has ended; False if `timeout_s` passed first."""
        self._receiver.join(timeout_s)
        return not self._receiver.is_alive()

    def _run(self) -> None:
        """Open the stream, and hand out replies until it ends."""
        channel = None
        try:
            channel = self._connect()
            call = channel.stream_stream(LOOKUP)(self._messages())
            with self._lock:
                self._call = call
                if self._retired is not None:  # it was broken off meanwhile
                    call.cancel()
            for message in call:
                self._receive(message)
            self.break_off("the shard ended the stream")
        except grpc.RpcError as error:
            refusal = error_in(error)
            self.break_off(f"the stream broke: {refusal or error.details()}", refusal)
        except MemoryServiceError as error:
            self.break_off(f"cannot open a stream: {error}", error)
        except Exception as error:  # whatever it is, pending requests will not be answered
            self.break_off(f"the stream broke: {error!r}")
        finally:
            if channel is not None:
                channel.close()

    def _connect(self) -> grpc.Channel:
        address = rows_address(self._shard, self._security, self._connect_timeout_s)
        return self._security.channel(address, OPTIONS)

    def _messages(self) -> Iterator[bytes]:
        """Yield the requests to send until the stream is retired."""
        while (request_id := self._outbox.get()) is not None:
            if (message := self._message(request_id)) is not None:
                yield message

    def _message(self, request_id: int) -> bytes | None:
        """A request to send; None if it was forgotten."""
        asked = self._pending.get(request_id)
        if asked is None:
            return None
        request, now = asked.request, time.monotonic()
        return pb.LookupRequest(
            request_id=request.request_id,
            table=request.spec.name,
            fingerprint=bytes.fromhex(request.spec.fingerprint),
            epoch=request.epoch,
            sent_us=int(now * 1e6),
            timeout_ms=max(0, int((request.deadline - now) * 1e3)),
            min_version=request.min_version,
            row_ids=ids_to_bytes(request.ids, request.spec.rows),
        ).SerializeToString()

    def _receive(self, message: bytes) -> None:
        reply, content = split_rows(pb.LookupReply, message)
        if not reply.request_id:
            self._retire(reply.message)
            return
        asked = self._pending.get(reply.request_id)
        error: MemoryServiceError | None = None
        over = True
        if asked is not None:
            try:
                over = self._take(asked, reply, content)
            except MemoryServiceError as found:
                error = found
        with self._lock:
            if over:
                asked = self._pending.pop(reply.request_id, None)
            self._silent_since = time.monotonic() if self._pending else None
        if not over or asked is None:
            return  # more rows are to come, or the request was forgotten, for example at its deadline
        if error is not None:
            asked.request.fail(error)
        else:
            if reply.epoch > asked.request.epoch:
                self._newer_epoch(asked.request.epoch)
            asked.request.land(asked.parts, reply.version)

    def _take(self, asked: _Asked, reply: pb.LookupReply, content: NDArray[np.uint8]) -> bool:
        """Keep the rows of a reply; return whether they are the last.

        Raises:
            MemoryServiceError: the reply is an error, or makes no sense.
        """
        request = asked.request
        if reply.status != pb.STATUS_OK:
            raise reply_error(self._shard, reply.status, reply.message, request)
        rows = as_rows(content, request.spec.row_bytes)
        if reply.version < request.min_version:
            raise MemoryServiceError(
                f"{self._shard.shard} sent rows of version {reply.version}, asked for {request.min_version} or later"
            )
        if not reply.first_row:
            asked.parts, asked.count, asked.version = [], 0, reply.version
        if (reply.first_row, reply.version) != (asked.count, asked.version):
            raise MemoryServiceError(
                f"{self._shard.shard} sent rows from {reply.first_row} on of version {reply.version}, expected them "
                f"from {asked.count} on of version {asked.version}"
            )
        asked.parts.append(rows)
        asked.count += len(rows)
        return asked.count >= len(request.ids) or not len(rows)

    def _unavailable(self, why: str, request: RowRequest) -> MemoryServiceError:
        return ResourceExhausted(self._refusal) if self._refusal else unavailable(self._shard, why, request)


def rows_address(shard: ShardAddress, security: ClientSecurity, timeout_s: float) -> str:
    """Ask a shard for HOST:PORT of its rows; a shard that was restarted has another port.

    Raises:
        MemoryServiceError: it does not answer within `timeout_s`, or refuses to.
    """
    with ControlClient(shard.address, shard.shard, security) as control:
        rows_port = control.describe(timeout_s).rows_port
    return str(Address(parse_address(shard.address).host, rows_port))


def reply_error(shard: ShardAddress, status: int, message: str, request: RowRequest) -> MemoryServiceError:
    """The error that a shard answered a request with."""
    error = error_of(status, message)
    if isinstance(error, ShardError):
        error.table, error.shard, error.epoch = request.spec.name, shard.shard, request.epoch
    return error


def unavailable(shard: ShardAddress, why: str, request: RowRequest) -> MemoryServiceError:
    """The error of a request that a shard will not answer."""
    where = f"{shard.shard} at {shard.address}, table {request.spec.name!r}, epoch {request.epoch}"
    return ShardUnavailable(f"{where}: {why}", request.spec.name, shard.shard, request.epoch)
