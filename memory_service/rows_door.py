"""The rows door of a shard, Arrow Flight: long-lived DoExchange streams of lookups, and DoGet of whole blocks."""

import logging
import threading
import time

import numpy as np
import pyarrow as pa
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from pyarrow import flight

from memory_service.arrow_rows import row_schema, view_ids, wrap_rows
from memory_service.block_copy import give_blocks
from memory_service.errors import InvalidRequest, MemoryServiceError, ShardUnavailable, UnknownTable
from memory_service.memory import require_table
from memory_service.shard import Shard
from memory_service.status import status_of
from protos import memory_pb2 as pb

LOOKUP = b"lookup"  # first part of the descriptor path; the second is the table

_log = logging.getLogger(__name__)


class RowsDoor(flight.FlightServerBase):
    """A Flight server around a shard, listening from construction on."""

    def __init__(self, shard: Shard, host: str, port: int) -> None:
        super().__init__(flight.Location.for_grpc_tcp(host, port))
        self._shard = shard
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
        """Answer the lookups of one client in one table until it goes away."""
        stream = _Stream(self._shard, _table_of(descriptor), reader, writer)
        with self._lock:
            if self._stopping:
                raise flight.FlightUnavailableError(f"{self._shard.name} is stopping")
            self._streams.add(stream)
        try:
            with self._shard.counters.stream():
                stream.serve()
        finally:
            with self._lock:
                self._streams.discard(stream)

    def do_get(self, context: flight.ServerCallContext, ticket: flight.Ticket) -> flight.GeneratorStream:
        """Give whole blocks to another shard."""
        try:
            wanted = pb.BlocksTicket.FromString(ticket.ticket)
            table = require_table(self._shard.tables, wanted.table)
        except (DecodeError, UnknownTable) as error:
            raise flight.FlightServerError(f"no ticket for blocks of {self._shard.name}: {error}") from error
        if wanted.fingerprint.hex() != table.spec.fingerprint:
            raise flight.FlightServerError(f"table {wanted.table!r} on {self._shard.name} has another fingerprint")
        return flight.GeneratorStream(row_schema(table.spec.row_bytes), give_blocks(table, wanted.blocks))

    def stop(self, grace_s: float) -> bool:
        """Ask every client to leave and stop listening; whether all had left after `grace_s`.

        Flight cannot break off a stream whose client does not react, so this waits in a thread of its own.
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


class _Stream:
    """One client's lookups in one table. Replies in order; an error is a reply, not the end of the stream."""

    def __init__(
        self,
        shard: Shard,
        table: str,
        reader: flight.MetadataRecordBatchReader,
        writer: flight.MetadataRecordBatchWriter,
    ) -> None:
        self._shard = shard
        self._counters = shard.counters
        self._table = table
        self._reader = reader
        self._writer = writer
        self._write_lock = threading.Lock()
        self._open = False
        self._leaving = False
        self._queue = QueueClock()
        if table not in shard.tables:
            raise flight.FlightServerError(f"{shard.name} has no table {table!r}")
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
            while (chunk := self._next()) is not None:
                read = time.perf_counter()
                self._answer(chunk)
                self._counters.took(time.perf_counter() - read)
        finally:
            with self._write_lock:
                self._open = False  # Flight frees the writer when this returns: say_goodbye must not touch it any more

    def say_goodbye(self) -> None:
        """Tell the client that this shard is stopping, so that it leaves once it has its answers."""
        self._leaving = True
        status, _ = status_of(ShardUnavailable(""))
        try:
            self._write(self._no_rows, pb.LookupReply(status=status, message=f"{self._shard.name} is stopping"))
        except (pa.ArrowException, OSError):
            return  # gone already

    def _next(self) -> flight.FlightStreamChunk | None:
        try:
            return self._reader.read_chunk()
        except (StopIteration, flight.FlightCancelledError):
            return None

    def _answer(self, chunk: flight.FlightStreamChunk) -> None:
        reply = pb.LookupReply(epoch=self._shard.epoch)
        rows = self._no_rows
        try:
            header = _header_of(chunk)
            reply.request_id = header.request_id
            waited_us = self._queue.waited_us(header.sent_us, time.monotonic_ns() // 1000)
            self._counters.spent("queue", waited_us * 1e-6)
            if waited_us > header.timeout_ms * 1000:
                return self._counters.expired()
            rows, reply.epoch, reply.version = self._lookup(header, chunk.data)
        except Exception as error:
            if not isinstance(error, MemoryServiceError):
                _log.exception("lookup in table %s failed", self._table)
            reply.status, _ = status_of(error)
            reply.message = str(error)
            self._counters.refused(error)
        start = time.perf_counter()
        self._write(rows, reply)
        return self._counters.spent("write", time.perf_counter() - start)

    def _lookup(self, header: pb.LookupRequest, batch: pa.RecordBatch | None) -> tuple[NDArray[np.uint8], int, int]:
        if batch is None:
            raise InvalidRequest("the request has no record batch of row ids")
        return self._shard.lookup(self._table, view_ids(batch), header.epoch, header.fingerprint.hex())

    def _write(self, rows: NDArray[np.uint8], reply: pb.LookupReply) -> None:
        with self._write_lock:
            if self._open:
                self._writer.write_with_metadata(wrap_rows(rows, self._schema), reply.SerializeToString())


class QueueClock:
    """How long requests waited to be read, without comparing the clocks of two machines.

    The least difference between arrival and sending seen so far stands for a request that did not wait.
    """

    def __init__(self) -> None:
        self._least: int | None = None

    def waited_us(self, sent_us: int, now_us: int) -> int:
        """Microseconds by which this request took longer than the quickest one."""
        delay = now_us - sent_us
        self._least = delay if self._least is None else min(self._least, delay)
        return delay - self._least


def _table_of(descriptor: flight.FlightDescriptor) -> str:
    path = descriptor.path or []
    if len(path) != 2 or path[0] != LOOKUP:
        raise flight.FlightServerError(f"descriptor path must be ['lookup', TABLE], got {path}")
    return path[1].decode(errors="replace")


def _header_of(chunk: flight.FlightStreamChunk) -> pb.LookupRequest:
    if chunk.app_metadata is None:
        raise InvalidRequest("the request has no LookupRequest in its app_metadata")
    try:
        return pb.LookupRequest.FromString(chunk.app_metadata.to_pybytes())
    except DecodeError as error:
        raise InvalidRequest(f"the app_metadata is no LookupRequest: {error}") from error
