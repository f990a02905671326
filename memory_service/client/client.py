"""A memory whose tables lie in shards on the network."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from memory_service.client.cache import RowCache
from memory_service.client.counters import LookupCounters
from memory_service.client.lookup import Lookup, Part
from memory_service.client.mapped_table import MappedTable
from memory_service.client.replica_choice import Budget, Patience, ShardHealth, choose
from memory_service.client.retries import Retries
from memory_service.client.shard_directory import ShardDirectory
from memory_service.client.snapshot import snapshot_shards
from memory_service.client.stream import RowStream
from memory_service.client.watch import Watch
from memory_service.errors import MemoryServiceError, ShardUnavailable, WrongEpoch
from memory_service.memory import MemoryStats, Rows, require_table
from memory_service.metrics.catalogue import CLIENT_EPOCH
from memory_service.metrics.metrics import Sample
from memory_service.placement.placement import Placement, ShardAddress
from memory_service.protocol.security import ClientSecurity
from memory_service.protocol.shared_table import SharedTable
from memory_service.snapshots.snapshot import Snapshot
from memory_service.tables.distinct import DistinctRows
from memory_service.tables.spec import TableSpec

_ROUNDS = {ShardUnavailable: 1, WrongEpoch: 5}  # times to read the placement anew after every replica has failed
_TORN_ATTEMPTS = 10  # a torn one counts twice: given up, and begun again
_TICK_S = 0.005
_AS_GOOD_AS_FAILED = 10.0  # times as long as one is patient
_LEAVE_S = 2.0  # for all shards together to end their streams on close


@dataclass(frozen=True)
class ClientConfig:
    """How a client asks."""

    lookup_timeout_s: float = 5.0
    """Deadline of a lookup that gives none."""
    connect_timeout_s: float = 5.0
    """Time to describe a shard, when joining and when a stream opens."""
    request_rows: int = 1 << 17
    """Rows in one request; a lookup of more is asked for in several."""
    stall_s: float = 5.0
    """A stream that was silent for so long while an answer was due is given up and opened anew."""
    down_s: float = 1.0
    """For how long a shard that failed is asked only for what nobody else has; doubled each time it fails again."""
    cache_bytes: int = 0
    """Bytes of rows kept at the client for each table, in front of the network; 0 keeps none."""
    map_local: bool = False
    """Read the rows of shards on this machine from their memory, where this process may, instead of asking them."""
    hedge_least_s: float = 0.005
    """A replica is asked as well when an answer takes 3 times as long as usual, and at least so long."""
    hedge_share: float = 0.05
    """Share of the requests that may be asked of a second replica while the first is slow."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0 or (value == 0 and name not in ("cache_bytes", "map_local")):
                raise ValueError(f"{name}: {value} is too low; use a number above 0")


class MemoryClient:
    """Looks rows up in the shards of a memory. Safe to use from several threads; connections open as needed."""

    def __init__(self, directory: ShardDirectory, config: ClientConfig) -> None:
        self.specs: Mapping[str, TableSpec] = directory.specs
        self._directory = directory
        self._config = config
        self._counters = LookupCounters()
        self._health = ShardHealth(config.down_s)
        self._patience = Patience(config.hedge_least_s)
        self._hedges = Budget(config.hedge_share)
        self._caches = {
            spec.name: RowCache(spec.rows, spec.row_bytes, config.cache_bytes)
            for spec in directory.specs.values()
            if config.cache_bytes
        }
        self._turns = itertools.count()
        self._watch = Watch(_TICK_S)
        self._retries = Retries(directory, self._again)
        self._lock = Lock()
        self._mapped: dict[SharedTable, MappedTable | None] = {}
        self._streams: dict[tuple[ShardAddress, str], RowStream] = {}
        self._closed = False

    @classmethod
    def connect(
        cls,
        address: str,
        timeout_s: float = 5.0,
        config: ClientConfig | None = None,
        security: ClientSecurity | None = None,
    ) -> MemoryClient:
        """Join by the host:port of any shard and learn the others from it.

        Without `security` the environment says what the connections need; see ClientSecurity.from_environment.
        ShardUnavailable naming the shard and its address if one that is needed does not answer within `timeout_s`.
        """
        security = security or ClientSecurity.from_environment()
        return cls(ShardDirectory.read(address, timeout_s, security), config or ClientConfig())

    def lookup(self, table: str, rows: np.ndarray, timeout_s: float | None = None) -> Future[Rows]:
        """See Memory.lookup; the deadline is `timeout_s`, or the config's, from now on. Never blocks on a shard."""
        self._require_open()
        spec = require_table(self.specs, table)
        started = time.monotonic()
        timeout_s = self._config.lookup_timeout_s if timeout_s is None else timeout_s
        with self._counters.stage("dedup"):
            asked = DistinctRows(spec, rows)
        lookup = Lookup(self, spec, asked, started, timeout_s)
        self._watch.add(lookup)
        with self._counters.stage("send"):
            self._attempt(lookup)
        return lookup.future

    def stats(self) -> MemoryStats:
        """Counters since the client connected."""
        return self._counters.snapshot()

    def collect(self) -> Iterator[Sample]:
        """The same and more as samples of metrics."""
        yield Sample(CLIENT_EPOCH, (), self._directory.placement.epoch)
        yield from self._counters.collect()

    def snapshot(self, uri: str | Path, full: bool = False) -> Snapshot:
        """Have the shards write their blocks below a directory that they and this process can reach, then seal it.

        A directory that holds a snapshot of this memory gets a new generation, of the blocks that changed, or with
        `full` of all. SnapshotError if it holds another memory. After a failure the generations there are as before.
        """
        return snapshot_shards(self._directory, uri, full)

    def close(self) -> None:
        """Fail the lookups under way and end all threads and connections."""
        with self._lock:
            self._closed = True
            streams = list(self._streams.values())
            self._streams.clear()
            self._mapped.clear()
        self._retries.close()
        for stream in streams:
            stream.break_off("this client was closed")
        self._watch.close()
        deadline = time.monotonic() + _LEAVE_S
        for stream in streams:
            if not stream.join(max(0.0, deadline - time.monotonic())):
                stream.abort("this client was closed")

    def _attempt(self, lookup: Lookup) -> None:
        """Ask for all rows of a lookup that are not in the cache, under the current placement."""
        attempt, missing = self._begin(lookup)
        ids = lookup.ids if missing is None else lookup.ids[missing]
        placement = self._directory.placement
        try:
            shards = self._choose(placement, lookup.spec, ids)
            assert shards is not None, "nobody was tried yet"
            self._send(lookup.split(shards, placement.shards, placement.epoch, self._config.request_rows, missing))
            lookup.arrange(attempt)
        except MemoryServiceError as error:
            lookup.reject(error)

    def _begin(self, lookup: Lookup) -> tuple[int, NDArray[np.int64] | None]:
        """Begin an attempt with the rows that the cache has: its number, and the places of the others, None for all."""
        cache = self._caches.get(lookup.spec.name)
        if cache is None:
            return lookup.begin(), None
        buffer = np.empty((len(lookup.ids), lookup.spec.row_bytes), np.uint8)
        with self._counters.stage("cache"):
            found, version = cache.get(lookup.ids, buffer)
        missing = np.flatnonzero(~found)
        hits = len(found) - len(missing)
        self._counters.count("cache_hits", hits)
        self._counters.count("cache_misses", len(missing))
        return lookup.begin(buffer, version if hits else None), missing if hits else None

    def _choose(
        self, placement: Placement, spec: TableSpec, ids: NDArray[np.int64], tried: frozenset[str] = frozenset()
    ) -> NDArray[np.uint16] | None:
        blocks = ids >> spec.block_shift
        return choose(placement, spec.name, blocks, next(self._turns), self._health.suspects(), tried)

    def _send(self, parts: list[Part]) -> None:
        for part in parts:
            part.sent = time.monotonic()
            mapped = self._mapping(part.shard, part.lookup.spec) if self._config.map_local else None
            found = mapped.read(part.ids) if mapped else None
            if found is not None:
                part.land(*found)
                continue
            part.stream = self._stream(part.shard, part.lookup.spec)
            self._hedges.earn()
            part.stream.send(part)

    def _mapping(self, shard: ShardAddress, spec: TableSpec) -> MappedTable | None:
        """The memory of a shard of this machine; None if it is on another, or may not be mapped."""
        shared = self._directory.shared.get((shard.shard, spec.name))
        if shared is None:
            return None
        with self._lock:
            if shared not in self._mapped:
                self._mapped[shared] = MappedTable.open(spec, shared)
            return self._mapped[shared]

    def _stream(self, shard: ShardAddress, spec: TableSpec) -> RowStream:
        stream = self._streams.get((shard, spec.name))
        if stream is not None and not stream.retired:
            return stream
        with self._lock:
            self._require_open()
            stream = self._streams.get((shard, spec.name))
            if stream is None or stream.retired:
                stream = RowStream(
                    shard, spec, self._config.connect_timeout_s, self._directory.security, self._retries.refresh
                )
                self._streams[shard, spec.name] = stream
            return stream

    def _stand_in(self, part: Part) -> bool:
        """Ask other replicas for a part's rows; False if there are none that were not asked yet."""
        placement = self._directory.placement
        tried = part.tried if placement.epoch == part.epoch else frozenset()
        shards = self._choose(placement, part.lookup.spec, part.ids, tried)
        if shards is None:
            return False
        parts = part.lookup.stand_in(part, shards, placement.shards, placement.epoch, self._config.request_rows)
        self._send(parts)
        return True

    def check(self, lookup: Lookup, now: float) -> None:
        """Ask other replicas for what is late, and end a lookup whose time is up."""
        expired = now >= lookup.deadline
        for part in lookup.owed():
            if part.stream is not None and part.stream.stalled(self._config.stall_s):
                part.stream.abort(f"silent for {self._config.stall_s:g} s")
            elif part.sent and not (part.late or expired):
                self._hedge(part, (now - part.sent) / self._patience.seconds(len(part.ids)))
        if expired:
            lookup.reject(lookup.overdue())

    def _hedge(self, part: Part, patience: float) -> None:
        """Ask other replicas once a part has taken longer than one is patient, if the budget allows.

        A shard that fails costs no budget, and no more does one that is as good as failed.
        """
        if patience <= 1:
            return
        failed = patience > _AS_GOOD_AS_FAILED or part.shard.shard in self._health.suspects()
        if not failed and not self._hedges.spend():
            return
        part.late = True
        try:
            if self._stand_in(part):
                self._counters.count("hedges")
                self._health.late(part.shard.shard)
        except MemoryServiceError:
            return  # the client is being closed: the part itself ends the lookup

    def landed(self, part: Part, rows: NDArray[np.uint8], version: int) -> None:
        """Judge the shard by the time it took, and keep the rows for the next time."""
        waited = time.monotonic() - part.sent
        asked = part.stream is not None  # else the rows were read from the shard's memory
        self._counters.spent("wait" if asked else "map", waited)
        if asked and not part.late:
            self._health.answered(part.shard.shard)
            self._patience.saw(part.shard.shard, len(rows), waited)
        cache = self._caches.get(part.lookup.spec.name)
        if cache is not None and asked:
            cache.put(part.ids, rows, version)
        self._counters.shard_rows(part.shard.shard, len(rows))

    def failed(self, part: Part, error: MemoryServiceError) -> None:
        """Ask another replica, then whoever a newer placement names; otherwise the lookup ends in the error."""
        if isinstance(error, ShardUnavailable) and error.shard:
            self._health.failed(error.shard)
        if type(error) not in _ROUNDS or self._closed:
            return part.lookup.reject(error)
        try:
            if isinstance(error, ShardUnavailable) and self._stand_in(part):
                return self._counters.count("failovers")
        except MemoryServiceError as closed:
            return part.lookup.reject(closed)
        if part.rounds >= _ROUNDS[type(error)]:
            return part.lookup.reject(error)
        part.rounds += 1
        self._counters.count("retries")
        return self._retries.add(part)

    def torn(self, lookup: Lookup) -> None:
        """Begin again: an update was committed while the rows were being read."""
        if lookup.attempt > _TORN_ATTEMPTS:
            name = lookup.spec.name
            return lookup.reject(MemoryServiceError(f"table {name!r}: its version kept changing, try again"))
        return self._attempt(lookup)

    def ended(self, lookup: Lookup, error: MemoryServiceError | None) -> None:
        """Count a lookup that ends."""
        self._watch.remove(lookup)
        if error is None:
            seconds = time.monotonic() - lookup.started
            self._counters.answered(lookup.spec, lookup.asked.size, len(lookup.ids), seconds)
        else:
            self._counters.failed()

    def _again(self, part: Part) -> None:
        """Ask for a part's rows under the placement as it is by now."""
        try:
            part.tried = frozenset()
            self._stand_in(part)
        except MemoryServiceError as error:
            part.lookup.reject(error)

    def _require_open(self) -> None:
        if self._closed:
            raise MemoryServiceError("this client is closed: connect a new one")
