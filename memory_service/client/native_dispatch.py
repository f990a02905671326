"""The dispatcher of a client in C++: plain lookups pass Python by, and all others are decided here as ever.

A lookup is plain as long as every shard that it asks answers in time, with rows of one version. Once that is no longer
so, it is adopted: a Lookup is made that stands where the plain one stood, is told what came so far, and takes over.
"""

from __future__ import annotations

import atexit
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_service.client.config import ClientConfig
from memory_service.client.counters import LookupCounters
from memory_service.client.dispatch import Dispatcher, SentRequest, closed_error
from memory_service.client.lookup import Lookup
from memory_service.client.native_future import NativeRowsFuture
from memory_service.client.native_stream import NativeRowStream
from memory_service.client.pending import PendingLookup, RowsFuture
from memory_service.client.stream import Stream
from memory_service.control.shard_directory import ShardDirectory
from memory_service.errors import MemoryServiceError
from memory_service.metrics.metrics import SECONDS_BOUNDS
from memory_service.placement.placement import Placement, ShardAddress
from memory_service.tables.distinct import Distinct, DistinctRows, check_ids
from memory_service.tables.spec import TableSpec

Allocate = Callable[[int], NDArray[np.uint8]]
"""Allocates memory for rows to land in."""

_SIZES = 65  # bit lengths of a number of rows
_MOST_HASHED = 1 << 20  # ids of one lookup; more are sorted


@dataclass(frozen=True)
class _Route:
    """Where the rows of a table are, as plain lookups know it."""

    spec: TableSpec
    placement: Placement
    streams: Sequence[Stream | None]
    """By shard of the placement; None where none was open."""
    native: Any


class HashedRows:
    """As DistinctRows, by hashing in C++; distinct ids are in the order in which they first appear."""

    def __init__(self, spec: TableSpec, rows: np.ndarray, table: Any) -> None:
        """Deduplicate row ids.

        Raises:
            InvalidRequest, RowOutOfRange: see DistinctRows.
        """
        ids = _as_ids(spec, rows)
        self.size = ids.size
        try:
            self.ids, self._inverse = table.distinct(ids)
        except IndexError:
            check_ids(spec, np.asarray(rows))
            raise

    def inverse(self) -> NDArray[np.int64]:
        """Index into `ids` for every requested id, int64 in the shape of the request."""
        return self._inverse


class _PlainRows:
    """What a plain lookup asked for."""

    def __init__(self, plain: Any) -> None:
        self.ids: NDArray[np.int64] = plain.ids
        self.size: int = plain.asked
        self._inverse: NDArray[np.int64] = plain.inverse

    def inverse(self) -> NDArray[np.int64]:
        """Index into `ids` for every requested id."""
        return self._inverse


class NativeDispatcher(Dispatcher):
    """A dispatcher whose streams and plain lookups are in C++."""

    def __init__(
        self,
        directory: ShardDirectory,
        config: ClientConfig,
        counters: LookupCounters,
        native: Any,
        allocate: Allocate | None = None,
    ) -> None:
        self._native = native
        self._routes: dict[str, _Route] = {}
        self._client = native.Client(SECONDS_BOUNDS, self._adopt, self._learn, allocate)
        super().__init__(directory, config, counters)
        self._tables = {name: self._table(spec) for name, spec in directory.specs.items()}
        for bits in range(_SIZES):
            self._client.set_patience(bits, self._patience.seconds((1 << bits) - 1))
        counters.feed(self._count)
        _running.add(self)

    def lookup(self, spec: TableSpec, rows: np.ndarray, timeout_s: float, min_version: int = 0) -> RowsFuture:
        """Begin a lookup; never blocks on a shard.

        Raises:
            InvalidRequest, RowOutOfRange: the request cannot be right.
        """
        route = self._routes.get(spec.name)
        if route is None or route.placement is not self.placement or self._health.suspects():
            return self._lookup_by_python(spec, rows, timeout_s, min_version)
        plain = self._client.lookup(
            *(self._tables[spec.name], route.native, _as_ids(spec, rows)),
            *(self.turn(), timeout_s, min_version, self.request_rows),
        )
        if plain is None:
            return self._lookup_by_python(spec, rows, timeout_s, min_version)
        future = NativeRowsFuture(plain)
        plain.own((weakref.ref(future), route))
        return future

    def close(self) -> None:
        """Fail the lookups under way and end all threads and connections."""
        super().close()
        self._client.close()
        self._routes.clear()
        _running.discard(self)

    def _lookup_by_python(self, spec: TableSpec, rows: np.ndarray, timeout_s: float, min_version: int) -> RowsFuture:
        """Begin a lookup that is not plain, and see to it that the next one can be."""
        future = super().lookup(spec, rows, timeout_s, min_version)
        self._routes[spec.name] = self._route(spec)
        return future

    def _table(self, spec: TableSpec) -> Any:
        cache = self._caches.get(spec.name)
        return self._native.table(
            *(spec.name, bytes.fromhex(spec.fingerprint), spec.rows, spec.row_bytes, spec.block_shift),
            None if cache is None else cache.native,
        )

    def _route(self, spec: TableSpec) -> _Route:
        placement = self.placement
        streams = [self._streams.get(shard) for shard in placement.shards]
        natives = [stream.native if isinstance(stream, NativeRowStream) else None for stream in streams]
        mapped = [self._mapping(shard, spec) if self._config.map_local else None for shard in placement.shards]
        native = self._native.route(
            *(placement.epoch, placement.assigned(spec.name), [shard.shard for shard in placement.shards], natives),
            [None if table is None else table.native for table in mapped],
        )
        return _Route(spec, placement, streams, native)

    def _under_way(self) -> list[PendingLookup]:
        self._client.end_lookups()  # they are adopted
        return super()._under_way()

    def _distinct(self, spec: TableSpec, rows: np.ndarray) -> Distinct:
        if np.size(rows) > _MOST_HASHED:
            return DistinctRows(spec, rows)
        return HashedRows(spec, rows, self._tables[spec.name])

    def _open(self, shard: ShardAddress) -> Stream:
        timeout_s, security = self._config.connect_timeout_s, self._directory.security
        return NativeRowStream(
            *(shard, timeout_s, security, self._retries.refresh), self._client, lambda spec: self._tables[spec.name]
        )

    def _adopt(self, plain: Any) -> None:
        """Go on with a lookup that is no longer plain."""
        reference, route = plain.owner
        future = reference()
        if future is not None:
            future.adopted()
        try:
            self._go_on(plain, route, future)
        except Exception as error:  # such as no memory: whoever waits is told, and nobody waits for ever
            if future is not None:
                with suppress(InvalidStateError):
                    name = route.spec.name
                    future.set_exception(MemoryServiceError(f"table {name!r}: the lookup cannot go on: {error!r}"))
            raise

    def _go_on(self, plain: Any, route: _Route, future: NativeRowsFuture | None) -> None:
        """Let the state machine in Python stand where a plain lookup stands."""
        self._learn()
        state = Lookup(route.spec, plain.ids, plain.started, plain.timeout, self, plain.min_version)
        buffer = None
        if route.spec.name in self._caches:
            self._counters.count("cache_hits", plain.hits)
            self._counters.count("cache_misses", len(plain.ids) - plain.hits)
        if plain.hits:
            buffer = np.empty((len(plain.ids), route.spec.row_bytes), np.uint8)
            buffer[: plain.hits] = plain.rows_of(0, plain.hits)
        pending = PendingLookup(state, _PlainRows(plain), plain.started, future, buffer)
        parts = [plain.part(index) for index in range(plain.parts)]
        runs = [(shard, low, low + count) for shard, _, low, count, _ in parts]
        requests = state.adopt(route.placement, runs, plain.sent, plain.hits, plain.version)
        self._watch.add(pending)
        sent = []
        for request, (shard, mapped, _, _, request_id) in zip(requests, parts, strict=True):
            sent.append(SentRequest(self, pending, request))
            sent[-1].request_id = request_id
            if not mapped:
                self.hedging_budget.earn()
                pending.remember(sent[-1], route.streams[shard])

        def report(plain: Any, index: int) -> None:  # which must not own the lookup that owns it
            shard, mapped, low, _, _ = parts[index]
            answered, landed, version, failure = plain.outcome(index)
            if mapped:
                self._land(pending, requests[index], [plain.rows_of(low, landed)], version, mapped=True)
            elif failure is None:
                self.answered(pending, requests[index], [plain.rows_of(low, landed)], version, answered)
            else:
                self.failed(pending, requests[index], route.streams[shard].error(*failure, sent[index]))

        self._perform(pending, pending.arrange(state.attempt))
        plain.attach(report)
        if self._closed:
            self._report(pending, lambda state: state.abort(closed_error()))
        self._tick(pending, time.monotonic())

    def _learn(self) -> None:
        """Learn from answers to plain lookups."""
        for shard, rows, seconds in self._client.take_answers():
            self._health.answered(shard)
            self._patience.record(shard, rows, seconds)
        for bits, seconds in self._patience.known().items():
            self._client.set_patience(bits, seconds)
        self._count()

    def _count(self) -> None:
        """Count the plain lookups that have ended."""
        for name, tally in self._client.take_tallies().items():
            self.hedging_budget.earn(tally.requests)
            self._counters.add(self._directory.specs[name], tally.lookups, tally.rows, tally.unique_rows)
            self._counters.count("cache_hits", tally.cache_hits)
            self._counters.count("cache_misses", tally.cache_misses)
            self._counters.add_durations(None, tally.total.counts, tally.total.seconds)
            stages = {"dedup": tally.distinct, "send": tally.send, "wait": tally.wait}
            stages |= {"cache": tally.cache, "map": tally.map}
            for stage, durations in stages.items():
                if durations.counts:
                    self._counters.add_durations(stage, durations.counts, durations.seconds)
            for shard, rows in tally.shard_rows.items():
                self._counters.shard_rows(shard, rows)


_running: weakref.WeakSet[NativeDispatcher] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """End the threads of clients that were not closed: they must not call into an interpreter that is gone."""
    for dispatcher in list(_running):
        dispatcher.close()


def _as_ids(spec: TableSpec, rows: np.ndarray) -> NDArray[np.int64]:
    """Row ids as C++ reads them; those beyond int64 come out negative.

    Raises:
        InvalidRequest: they are not integers.
    """
    rows = np.asarray(rows)
    if rows.dtype != np.int64:
        if rows.dtype.kind not in "iu":
            check_ids(spec, rows)
        rows = rows.astype(np.int64)
    return np.asarray(rows, order="C")
