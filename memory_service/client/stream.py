"""The client's end of a row stream: requests of many lookups to one shard, for rows of one table."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import flight

from memory_service.control.client import ControlClient
from memory_service.errors import MemoryServiceError, ResourceExhausted, ShardError, ShardUnavailable
from memory_service.placement.placement import ShardAddress
from memory_service.protocol.addresses import parse_address
from memory_service.protocol.flight_errors import refusal_in
from memory_service.protocol.flight_paths import LOOKUP
from memory_service.protocol.security import ClientSecurity
from memory_service.protocol.status import error_of
from memory_service.tables.arrow_rows import ID_SCHEMA, view_rows
from memory_service.tables.spec import TableSpec
from protos import memory_pb2 as pb

_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),  # no back-off inherited from a channel to an earlier process
    ("grpc.min_reconnect_backoff_ms", 2000),  # for one attempt to connect
    ("grpc.http2.lookahead_bytes", 8 << 20),  # a large reply need not wait for the window to grow
    ("grpc.experimental.tcp_read_chunk_size", 1 << 20),  # fewer and larger reads of it
    ("grpc.experimental.tcp_max_read_chunk_size", 4 << 20),
]
_LEAVE_S = 5.0  # for the shard to answer pending requests when a stream ends
_LEAVE_TICK_S = 0.01


class RowRequest(Protocol):
    """Rows that one lookup requests from one shard, as the stream sees them."""

    ids: NDArray[np.int64]
    epoch: int
    request_id: int
    """Number of the request on its stream; set by the stream."""

    @property
    def deadline(self) -> float:
        """Moment of the monotonic clock after which the rows are no longer wanted."""

    def land(self, rows: NDArray[np.uint8], version: int) -> None:
        """Take the rows, an array that nothing else refers to, and the version of the table that they belong to."""

    def fail(self, error: MemoryServiceError) -> None:
        """Learn that the rows will not come."""


class RowStream:
    """Sends requests and hands out their replies. It opens in the background and, once retired, is replaced by another.

    A thread of its own sends, because writing to a shard that has stopped reading blocks, which a lookup must not. That
    holds for the smallest request too, since the flow-control window that HTTP/2 has left is not known.
    """

    def __init__(
        self,
        shard: ShardAddress,
        spec: TableSpec,
        connect_timeout_s: float,
        security: ClientSecurity,
        newer_epoch: Callable[[int], None] = lambda epoch: None,
    ) -> None:
        self._shard = shard
        self._spec = spec
        self._fingerprint = bytes.fromhex(spec.fingerprint)
        self._connect_timeout_s = connect_timeout_s
        self._security = security
        self._newer_epoch = newer_epoch
        self._lock = threading.Lock()
        self._pending: dict[int, RowRequest] = {}
        self._outbox: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._next_id = 1
        self._retired: str | None = None
        self._refusal: str | None = None  # not the error: its traceback would keep the connection open
        self._reader: flight.FlightStreamReader | None = None
        self._silent_since: float | None = None  # since when an answer, to any request, has been due
        self._sender = threading.Thread(target=self._run, name=f"rows-send-{shard.shard}", daemon=True)
        self._sender.start()

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
                self._pending[self._next_id] = request
                self._next_id += 1
                self._silent_since = self._silent_since or time.monotonic()
                self._outbox.put(request.request_id)
        if retired is not None:
            request.fail(self._unavailable(retired, request))

    def forget(self, request: RowRequest) -> None:
        """Drop a request whose rows are no longer wanted; a late reply to it is ignored."""
        with self._lock:
            if self._pending.get(request.request_id) is request:
                del self._pending[request.request_id]

    def retire(self, why: str) -> None:
        """Take no more requests, and end the stream once the shard has answered the pending ones."""
        with self._lock:
            if self._retired is None:
                self._retired = why
                self._outbox.put(None)

    def break_off(self, why: str, cause: Exception | None = None) -> None:
        """Fail the pending requests and end the stream in the background; `cause` may be a refusal of the shard."""
        self._refusal = self._refusal or refusal_in(cause)
        self.retire(why)
        with self._lock:
            pending, self._pending = list(self._pending.values()), {}
        for request in pending:
            request.fail(self._unavailable(self._retired or why, request))

    def abort(self, why: str) -> None:
        """End the stream to a shard that does not react, even in the middle of a write."""
        self.break_off(why)
        if self._reader is not None:
            self._reader.cancel()

    def join(self, timeout_s: float) -> bool:
        """Wait until a stream that was broken off has ended; False if `timeout_s` passed first."""
        self._sender.join(timeout_s)
        return not self._sender.is_alive()

    def _run(self) -> None:
        try:
            client, writer, reader = self._open()
        except (MemoryServiceError, pa.ArrowException, OSError) as error:
            return self.break_off(f"cannot open a stream: {error}", error)
        self._reader = reader
        receiver = threading.Thread(
            target=self._receive_all, args=(reader,), name=f"rows-receive-{self._shard.shard}", daemon=True
        )
        receiver.start()
        while self._send_next(writer):
            pass
        self._leave(writer, reader, receiver)
        client.close()
        return None

    def _leave(
        self, writer: flight.FlightStreamWriter, reader: flight.FlightStreamReader, receiver: threading.Thread
    ) -> None:
        """Wait for pending requests, then cancel; closing the writer as well keeps Arrow from complaining later.

        Not by done_writing(): a reader whose stream breaks at that moment calls the same function itself, and gRPC
        aborts a process in which it is called twice.
        """
        deadline = time.monotonic() + _LEAVE_S
        while self._pending and receiver.is_alive() and time.monotonic() < deadline:
            time.sleep(_LEAVE_TICK_S)
        reader.cancel()
        receiver.join()
        with contextlib.suppress(pa.ArrowException, OSError):
            writer.close()

    def _open(self) -> tuple[flight.FlightClient, flight.FlightStreamWriter, flight.FlightStreamReader]:
        with ControlClient(self._shard.address, self._shard.shard, self._security) as control:
            rows_port = control.describe(self._connect_timeout_s).rows_port  # a restarted shard has another one
        host = parse_address(self._shard.address).host
        client = self._security.flight_client(host, rows_port, _OPTIONS)
        writer, reader = client.do_exchange(flight.FlightDescriptor.for_path(LOOKUP, self._spec.name))
        writer.begin(ID_SCHEMA)
        return client, writer, reader

    def _send_next(self, writer: flight.FlightStreamWriter) -> bool:
        request_id = self._outbox.get()
        if request_id is None:
            return False
        with self._lock:
            request = self._pending.get(request_id)
        if request is not None:  # else it was forgotten
            self._write(writer, request_id, request)
        return True

    def _write(self, writer: flight.FlightStreamWriter, request_id: int, request: RowRequest) -> None:
        now = time.monotonic()
        header = pb.LookupRequest(
            request_id=request_id,
            epoch=request.epoch,
            fingerprint=self._fingerprint,
            sent_us=int(now * 1e6),
            timeout_ms=max(0, int((request.deadline - now) * 1e3)),
        )
        batch = pa.RecordBatch.from_arrays([pa.array(request.ids)], schema=ID_SCHEMA)
        try:
            writer.write_with_metadata(batch, header.SerializeToString())
        except (pa.ArrowException, OSError) as error:
            self.break_off(f"the stream broke: {error}", error)

    def _receive_all(self, reader: flight.FlightStreamReader) -> None:
        try:
            while True:
                self._receive_one(reader.read_chunk())
        except StopIteration:
            self.break_off("the shard ended the stream")
        except Exception as error:  # whatever it is, pending requests will not be answered
            self.break_off(f"the stream broke: {error}", error)

    def _receive_one(self, chunk: flight.FlightStreamChunk) -> None:
        reply = pb.LookupReply.FromString(chunk.app_metadata.to_pybytes())
        if reply.request_id == 0:
            return self.retire(reply.message)
        with self._lock:
            request = self._pending.pop(reply.request_id, None)
            self._silent_since = time.monotonic() if self._pending else None
        if request is None:
            return None  # it was forgotten, for example at its deadline
        if reply.status != pb.STATUS_OK:
            return request.fail(self._error_of(reply, request))
        if reply.epoch > request.epoch:
            self._newer_epoch(request.epoch)
        try:
            rows = view_rows(chunk.data, self._spec.row_bytes)
        except MemoryServiceError as error:
            return request.fail(error)
        return request.land(rows, reply.version)

    def _error_of(self, reply: pb.LookupReply, request: RowRequest) -> MemoryServiceError:
        error = error_of(reply.status, reply.message)
        if isinstance(error, ShardError):
            error.table, error.shard, error.epoch = self._spec.name, self._shard.shard, request.epoch
        return error

    def _unavailable(self, why: str, request: RowRequest) -> MemoryServiceError:
        if self._refusal:
            return ResourceExhausted(self._refusal)
        where = f"{self._shard.shard} at {self._shard.address}, table {self._spec.name!r}, epoch {request.epoch}"
        return ShardUnavailable(f"{where}: {why}", self._spec.name, self._shard.shard, request.epoch)
