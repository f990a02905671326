"""Performs what lookups decide: sends requests to shards, takes their answers, and learns from both."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from memory_service.client.cache import RowCache
from memory_service.client.config import ClientConfig
from memory_service.client.counters import LookupCounters
from memory_service.client.lookup import (
    Action,
    Fail,
    Finish,
    Lookup,
    Reason,
    RefreshPlacement,
    Restart,
    Send,
    ShardRequest,
)
from memory_service.client.mapped_table import MappedTable
from memory_service.client.pending import Event, PendingLookup, RowsFuture
from memory_service.client.replica_choice import HedgingBudget, Patience, ShardHealth
from memory_service.client.retries import Retries
from memory_service.client.stream import RowStream, Stream
from memory_service.client.watch import Watch
from memory_service.control.shard_directory import ShardDirectory
from memory_service.errors import MemoryServiceError, ShardUnavailable
from memory_service.placement.placement import Placement, ShardAddress
from memory_service.protocol.shared_table import SharedTable
from memory_service.tables.distinct import Distinct, DistinctRows
from memory_service.tables.spec import TableSpec

_TICK_S = 0.005  # how often lookups under way are checked for lateness
_LEAVE_S = 2.0  # for all shards together to end their streams on close
_CLOSED = "this client was closed"
_COUNTED = {Reason.HEDGE: "hedges", Reason.FAILOVER: "failovers", Reason.RETRY: "retries"}


class Dispatcher:
    """The streams, timers and statistics of one client, as its lookups see them (lookup.Policy).

    Events reach a lookup from the caller's thread, the streams' threads, the retry thread and the watch thread. Each is
    reported to the lookup's state, which returns actions; these are performed here, outside of the lookup's lock.
    """

    def __init__(self, directory: ShardDirectory, config: ClientConfig, counters: LookupCounters) -> None:
        self.request_rows = config.request_rows
        self.hedging_budget = HedgingBudget(config.hedge_share)
        self._directory = directory
        self._config = config
        self._counters = counters
        self._health = ShardHealth(config.down_s)
        self._patience = Patience(config.hedge_least_s)
        self._caches = {
            spec.name: RowCache(spec.rows, spec.row_bytes, config.cache_bytes)
            for spec in directory.specs.values()
            if config.cache_bytes
        }
        self._turns = itertools.count()
        self._watch = Watch(_TICK_S, self._tick)
        self._retries = Retries(directory, self._refreshed)
        self._lock = Lock()
        self._mapped: dict[SharedTable, MappedTable | None] = {}
        self._streams: dict[ShardAddress, Stream] = {}
        self._closed = False

    @property
    def placement(self) -> Placement:
        """The newest placement known."""
        return self._directory.placement

    def turn(self) -> int:
        """A number that grows with each choice of replicas."""
        return next(self._turns)

    def suspects(self) -> frozenset[str]:
        """Shards that failed or were late recently."""
        return self._health.suspects()

    def patience_s(self, rows: int) -> float:
        """Seconds after which a request for so many rows is late."""
        return self._patience.seconds(rows)

    def may_hedge(self) -> bool:
        """Whether the hedging budget has room for a request."""
        return self.hedging_budget.has_room

    def spend_hedge(self) -> bool:
        """Take a request from the hedging budget; False if it has no room."""
        return self.hedging_budget.spend()

    def lookup(self, spec: TableSpec, rows: np.ndarray, timeout_s: float, min_version: int = 0) -> RowsFuture:
        """Begin a lookup; never blocks on a shard.

        Raises:
            InvalidRequest, RowOutOfRange: the request cannot be right.
        """
        started = time.monotonic()
        with self._counters.stage("dedup"):
            asked = self._distinct(spec, rows)
        return self._start(spec, asked, started, timeout_s, min_version)

    def _distinct(self, spec: TableSpec, rows: np.ndarray) -> Distinct:
        return DistinctRows(spec, rows)

    def _start(
        self, spec: TableSpec, asked: Distinct, started: float, timeout_s: float, min_version: int
    ) -> RowsFuture:
        pending = PendingLookup(Lookup(spec, asked.ids, started, timeout_s, self, min_version), asked, started)
        self._watch.add(pending)
        with self._counters.stage("send"):
            self._attempt(pending)
        return pending.future

    def close(self) -> None:
        """Fail the lookups under way and end all threads and connections."""
        with self._lock:
            self._closed = True
            streams = list(self._streams.values())
            self._streams.clear()
            self._mapped.clear()
        self._watch.close()
        self._retries.close()
        for pending in self._under_way():
            self._perform(pending, pending.report(lambda state: state.abort(closed_error())))
        for stream in streams:
            stream.break_off(_CLOSED)
        deadline = time.monotonic() + _LEAVE_S
        for stream in streams:
            stream.join(max(0.0, deadline - time.monotonic()))

    def _under_way(self) -> list[PendingLookup]:
        """The lookups that have not ended."""
        return self._watch.items()

    def _attempt(self, pending: PendingLookup) -> None:
        """Request all rows of a lookup that are not in the cache."""
        actions = pending.begin(time.monotonic(), *self._cached(pending))
        attempt = pending.state.attempt
        self._perform(pending, actions)
        self._perform(pending, pending.arrange(attempt))

    def _cached(self, pending: PendingLookup) -> tuple[NDArray[np.uint8] | None, NDArray[np.bool_] | None, int | None]:
        """A buffer with the rows that the cache has, which of the distinct ids these are, and their version."""
        spec, ids = pending.state.spec, pending.asked.ids
        cache = self._caches.get(spec.name)
        if cache is None or -1 < cache.version < pending.state.min_version:
            return None, None, None
        buffer = np.empty((len(ids), spec.row_bytes), np.uint8)
        with self._counters.stage("cache"):
            found, version = cache.get(ids, buffer)
        hits = int(np.count_nonzero(found))
        self._counters.count("cache_hits", hits)
        self._counters.count("cache_misses", len(found) - hits)
        return (buffer, found, version) if hits else (buffer, None, None)

    def _perform(self, pending: PendingLookup, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Send():
                    self._send_all(pending, action)
                case RefreshPlacement():
                    self._retries.add(action, pending)
                case Restart():
                    self._attempt(pending)
                case Finish():
                    self._finish(pending)
                case Fail():
                    self._watch.remove(pending)
                    self._counters.failed()
                    pending.fail(action.error)

    def _finish(self, pending: PendingLookup) -> None:
        self._watch.remove(pending)
        asked, seconds = pending.asked, time.monotonic() - pending.started
        self._counters.answered(pending.state.spec, asked.size, len(asked.ids), seconds)
        pending.finish()

    def _send_all(self, pending: PendingLookup, send: Send) -> None:
        if send.reason in _COUNTED:
            self._counters.count(_COUNTED[send.reason])
        if send.late is not None:
            self._health.late(send.late.shard)
        for request in send.requests:
            self._send(pending, request)

    def _send(self, pending: PendingLookup, request: ShardRequest) -> None:
        """Read the rows from the shard's memory where this process may, else send the request."""
        spec = pending.state.spec
        mapped = self._mapping(request.shard, spec) if self._config.map_local else None
        found = mapped.read(request.ids) if mapped is not None else None
        if found is not None and found[1] >= pending.state.min_version:
            self._counters.spent("map", time.monotonic() - request.sent)
            rows, version = found
            self._land(pending, request, [rows], version, mapped=True)
            return
        stream = self._stream(request.shard)
        if stream is None:
            self._report(pending, lambda state: state.abort(closed_error()))
            return
        self.hedging_budget.earn()
        sent = SentRequest(self, pending, request)
        stream.send(sent)
        pending.remember(sent, stream)

    def _mapping(self, shard: ShardAddress, spec: TableSpec) -> MappedTable | None:
        """The memory of a shard on this machine; None if it is on another, may not be mapped, or is gone."""
        shared = self._directory.shared.get((shard.shard, spec.name))
        if shared is None:
            return None
        with self._lock:
            if shared not in self._mapped:
                self._mapped[shared] = MappedTable.open(spec, shared)
            mapped = self._mapped[shared]
        return None if mapped is None or mapped.ended else mapped

    def _stream(self, shard: ShardAddress) -> Stream | None:
        """The open stream to a shard; None once the client is closed."""
        stream = self._streams.get(shard)
        if stream is not None and not stream.retired:
            return stream
        with self._lock:
            if self._closed:
                return None
            stream = self._streams.get(shard)
            if stream is None or stream.retired:
                stream = self._streams[shard] = self._open(shard)
            return stream

    def _open(self, shard: ShardAddress) -> Stream:
        return RowStream(shard, self._config.connect_timeout_s, self._directory.security, self._retries.refresh)

    def answered(
        self,
        pending: PendingLookup,
        request: ShardRequest,
        parts: Sequence[NDArray[np.uint8]],
        version: int,
        moment: float,
    ) -> None:
        """Report the answer of a shard, which came at this moment, to its lookup, and learn from it."""
        waited = moment - request.sent
        self._counters.spent("wait", waited)
        if not request.late:
            self._health.answered(request.shard.shard)
            self._patience.record(request.shard.shard, len(request.ids), waited)
        self._land(pending, request, parts, version)

    def _land(
        self,
        pending: PendingLookup,
        request: ShardRequest,
        parts: Sequence[NDArray[np.uint8]],
        version: int,
        mapped: bool = False,
    ) -> None:
        cache = self._caches.get(pending.state.spec.name)
        count = sum(map(len, parts))
        actions = pending.report(lambda state: state.landed(request, version, count), parts)
        torn = Restart() in actions
        if not torn:
            self._perform(pending, actions)
        if cache is not None and mapped:
            cache.put(request.ids[:0], parts[0][:0], version)  # what is cached must not be older
        elif cache is not None and count == len(request.ids):
            _put(cache, request.ids, parts, version)
        self._counters.shard_rows(request.shard.shard, count)
        if torn:  # once the cache holds the newer version
            self._perform(pending, actions)

    def failed(self, pending: PendingLookup, request: ShardRequest, error: MemoryServiceError) -> None:
        """Report to a lookup that a request of it will not be answered."""
        if isinstance(error, ShardUnavailable) and error.shard:
            self._health.failed(error.shard)
        self._report(pending, lambda state: state.failed(request, error, time.monotonic()))

    def _refreshed(self, pending: PendingLookup, error: MemoryServiceError | None) -> None:
        """Report to a lookup that the placement was read again, or could not be."""
        if error is not None:
            self._report(pending, lambda state: state.abort(error))
        else:
            self._report(pending, lambda state: state.refreshed(time.monotonic()))

    def _tick(self, pending: PendingLookup, now: float) -> None:
        """Report to a lookup that time has passed, and give up streams that are silent for too long."""
        for stream in pending.streams():
            if stream.stalled(self._config.stall_s):
                stream.break_off(f"silent for {self._config.stall_s:g} s")
        self._report(pending, lambda state: state.tick(now))

    def _report(self, pending: PendingLookup, event: Event) -> None:
        self._perform(pending, pending.report(event))


class SentRequest:
    """A request as its stream sees it (stream.RowRequest)."""

    __slots__ = ("_dispatcher", "_pending", "_request", "deadline", "epoch", "ids", "min_version", "request_id", "spec")

    def __init__(self, dispatcher: Dispatcher, pending: PendingLookup, request: ShardRequest) -> None:
        self._dispatcher, self._pending, self._request = dispatcher, pending, request
        self.spec, self.deadline, self.min_version = (
            pending.state.spec,
            pending.state.deadline,
            pending.state.min_version,
        )
        self.ids, self.epoch = request.ids, request.epoch
        self.request_id = 0

    def land(self, parts: Sequence[NDArray[np.uint8]], version: int) -> None:
        """Take the rows."""
        self._dispatcher.answered(self._pending, self._request, parts, version, time.monotonic())

    def fail(self, error: MemoryServiceError) -> None:
        """Learn that the rows will not come."""
        self._dispatcher.failed(self._pending, self._request, error)


def _put(cache: RowCache, ids: NDArray[np.int64], parts: Sequence[NDArray[np.uint8]], version: int) -> None:
    """Cache rows that came in parts."""
    low = 0
    for rows in parts:
        cache.put(ids[low : low + len(rows)], rows, version)
        low += len(rows)


def closed_error() -> MemoryServiceError:
    """The error of lookups that a client no longer takes, or does not end."""
    return MemoryServiceError(f"{_CLOSED}: connect a new one")
