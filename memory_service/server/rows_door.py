"""The rows door of a shard, Arrow Flight: long-lived DoExchange streams of lookups, and DoGet of whole blocks."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import numpy as np
import pyarrow as pa
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from pyarrow import flight

from memory_service.errors import (
    FingerprintMismatch,
    InvalidRequest,
    MemoryServiceError,
    RequestTooLarge,
    ShardUnavailable,
    UnknownTable,
)
from memory_service.memory import require_table
from memory_service.protocol.flight_errors import to_flight
from memory_service.protocol.flight_paths import LOOKUP
from memory_service.protocol.security import ServerSecurity
from memory_service.protocol.status import status_of
from memory_service.server.limits import Admission, Visitor, client_of
from memory_service.shard.block_copy import give_blocks
from memory_service.shard.shard import Shard
from memory_service.shard.table import ShardTable
from memory_service.tables.arrow_rows import check_id_schema, row_schema, view_ids, wrap_rows
from protos import memory_pb2 as pb

_HEADER_BYTES = 1024  # a LookupRequest has about 100

_log = logging.getLogger(__name__)


class RowsDoor(flight.FlightServerBase):
    """The Flight server of a shard, listening from construction on."""

    def __init__(self, shard: Shard, host: str, port: int, security: ServerSecurity, admission: Admission) -> None:
        options = security.flight_options(middleware={"methods": _OnlyRows()})
        super().__init__(security.flight_location(host, port), **options)
        self._shard = shard
        self._admission = admission
        self._lock = threading.Lock()
        self._streams: set[_Stream] = set()
        self._stopping = False

    def do_exchange(
        self,
        context: flight.ServerCallContext,
        descriptor: flight.FlightDescriptor,
        reader: flight.MetadataRecordBatchReader,
        writer: flight.MetadataRecordBatchWriter,
    ) -> None:
        """Answer one client's lookups in one table until it ends the stream."""
        with _without_traceback(), self._admission.stream(_client_of(context)) as visitor:
            stream = _Stream(self._shard, _table_of(descriptor), reader, writer, visitor)
            with self._known(stream), self._shard.counters.stream():
                stream.serve()

    def do_get(self, context: flight.ServerCallContext, ticket: flight.Ticket) -> flight.GeneratorStream:
        """Send whole blocks to another shard."""
        with _without_traceback():
            wanted = pb.BlocksTicket.FromString(ticket.ticket)
            table = require_table(self._shard.tables, wanted.table)
            if wanted.fingerprint.hex() != table.spec.fingerprint:
                raise FingerprintMismatch(f"table {wanted.table!r} on {self._shard.name} has another fingerprint")
            if len(wanted.blocks) > table.spec.blocks:
                raise RequestTooLarge(f"{len(wanted.blocks)} blocks of table {wanted.table!r}: it has fewer")
        return flight.GeneratorStream(
            row_schema(table.spec.row_bytes), self._giving(_client_of(context), table, wanted.blocks)
        )

    def stop(self, grace_s: float) -> bool:
        """Stop listening, and ask every client to end its streams.

        Flight cannot cancel a stream whose client does not react, so its shutdown waits in a thread of its own.

        Returns:
            Whether all streams have ended within `grace_s`.
        """
        with self._lock:
            self._stopping = True
            streams = list(self._streams)
        for stream in streams:
            threading.Thread(target=stream.say_goodbye, name="rows-goodbye", daemon=True).start()
        stopping = threading.Thread(target=self.shutdown, name="rows-shutdown", daemon=True)
        stopping.start()
        stopping.join(grace_s)
        return not stopping.is_alive()

    def _giving(
        self, client: str, table: ShardTable, blocks: Sequence[int]
    ) -> Iterator[tuple[pa.RecordBatch, pa.Buffer]]:
        with _without_traceback(), self._admission.stream(client):
            yield from give_blocks(table, blocks)

    @contextmanager
    def _known(self, stream: _Stream) -> Iterator[None]:
        """Register a stream, for as long as it lasts, to be ended by `stop`."""
        with self._lock:
            if self._stopping:
                raise ShardUnavailable(f"{self._shard.name} is stopping")
            self._streams.add(stream)
        try:
            yield
        finally:
            with self._lock:
                self._streams.discard(stream)


@contextmanager
def _without_traceback() -> Iterator[None]:
    """Raise errors as Flight's own, since it sends the traceback of any other to the client."""
    try:
        yield
    except flight.FlightError:
        raise
    except Exception as error:
        raise to_flight(error) from error


def _client_of(context: flight.ServerCallContext) -> str:
    return client_of(context.peer(), context.peer_identity())


class _OnlyRows(flight.ServerMiddlewareFactory):
    """Refuses Flight's other methods; Flight itself would do so with a traceback."""

    def start_call(self, info: flight.CallInfo, headers: object) -> None:
        """See flight.ServerMiddlewareFactory."""
        if info.method not in (flight.FlightMethod.DO_EXCHANGE, flight.FlightMethod.DO_GET):
            raise to_flight(InvalidRequest(f"a shard has no method {info.method.name} at its rows door"))


class _Stream:
    """One client's lookups in one table. Replies come in the order of the requests, and errors are replies."""

    def __init__(
        self,
        shard: Shard,
        table: str,
        reader: flight.MetadataRecordBatchReader,
        writer: flight.MetadataRecordBatchWriter,
        visitor: Visitor,
    ) -> None:
        self._shard = shard
        self._counters = shard.counters
        self._table = table
        self._reader = reader
        self._writer = writer
        self._visitor = visitor
        self._write_lock = threading.Lock()
        self._open = False
        self._leaving = False
        self._queue = QueueClock()
        if table not in shard.tables:
            raise UnknownTable(f"{shard.name} has no table {table!r:.200}")
        self._schema = row_schema(shard.tables[table].spec.row_bytes)
        self._no_rows = np.empty((0, shard.tables[table].spec.row_bytes), np.uint8)

    def serve(self) -> None:
        """Read requests and write replies until the client ends the stream."""
        with self._write_lock:
            self._writer.begin(self._schema)
            self._open = True
        if self._leaving:
            self.say_goodbye()
        try:
            check_id_schema(self._reader.schema)
            while (chunk := self._next()) is not None:
                read = time.perf_counter()
                self._answer(chunk)
                self._counters.took(time.perf_counter() - read)
        finally:
            with self._write_lock:
                self._open = False  # Flight frees the writer when this returns, so say_goodbye must not use it

    def say_goodbye(self) -> None:
        """Tell the client that this shard is stopping, so that it ends the stream once it has its replies."""
        self._leaving = True
        status, _ = status_of(ShardUnavailable(""))
        with suppress(pa.ArrowException, OSError):  # the client has left already
            self._write(self._no_rows, pb.LookupReply(status=status, message=f"{self._shard.name} is stopping"))

    def _next(self) -> flight.FlightStreamChunk | None:
        try:
            return self._reader.read_chunk()
        except (StopIteration, flight.FlightCancelledError):
            return None

    def _answer(self, chunk: flight.FlightStreamChunk) -> None:
        reply = pb.LookupReply(epoch=self._shard.epoch)
        rows = self._no_rows
        with ExitStack() as under_way:
            try:
                header = _header_of(chunk)
                reply.request_id = header.request_id
                waited_us = self._queue.waited_us(header.sent_us, time.monotonic_ns() // 1000)
                self._counters.spent("queue", waited_us * 1e-6)
                if waited_us > header.timeout_ms * 1000:
                    return self._counters.expired()
                ids = _ids_of(chunk)
                under_way.enter_context(self._visitor.request(self._bytes_of(ids)))
                rows, reply.epoch, reply.version = self._shard.lookup(
                    self._table, ids, header.epoch, header.fingerprint.hex()
                )
            except Exception as error:
                if not isinstance(error, MemoryServiceError):
                    _log.exception("lookup in table %s failed", self._table)
                reply.status, _ = status_of(error)
                reply.message = str(error)
                self._counters.refused(error)
            start = time.perf_counter()
            self._write(rows, reply)
        return self._counters.spent("write", time.perf_counter() - start)

    def _bytes_of(self, ids: NDArray[np.int64]) -> int:
        """Bytes of a request and its reply."""
        return ids.nbytes + len(ids) * self._no_rows.shape[1]

    def _write(self, rows: NDArray[np.uint8], reply: pb.LookupReply) -> None:
        with self._write_lock:
            if self._open:
                self._writer.write_with_metadata(wrap_rows(rows, self._schema), reply.SerializeToString())


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


def _table_of(descriptor: flight.FlightDescriptor) -> str:
    path = descriptor.path or []
    if len(path) != 2 or path[0] != LOOKUP:
        raise InvalidRequest(f"descriptor path must be ['lookup', TABLE], got {path!r:.200}")
    return path[1].decode(errors="replace")


def _ids_of(chunk: flight.FlightStreamChunk) -> NDArray[np.int64]:
    if chunk.data is None:
        raise InvalidRequest("the request has no record batch of row ids")
    return view_ids(chunk.data)


def _header_of(chunk: flight.FlightStreamChunk) -> pb.LookupRequest:
    if chunk.app_metadata is None:
        raise InvalidRequest("the request has no LookupRequest in its app_metadata")
    if (size := chunk.app_metadata.size) > _HEADER_BYTES:
        raise RequestTooLarge(f"the app_metadata has {size} bytes, a LookupRequest at most {_HEADER_BYTES}")
    try:
        return pb.LookupRequest.FromString(chunk.app_metadata.to_pybytes())
    except (DecodeError, ValueError) as error:  # ValueError for text that is not UTF-8
        raise InvalidRequest(f"the app_metadata is no LookupRequest: {error}") from error
