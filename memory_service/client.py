"""A memory whose tables lie in shards on the network."""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from memory_service.assembly import Assembly, Lookup
from memory_service.deadlines import Deadlines
from memory_service.directory import Directory
from memory_service.errors import MemoryServiceError, ShardUnavailable, WrongEpoch
from memory_service.memory import MemoryStats, Rows, distinct_rows, require_table
from memory_service.placement import Placement, ShardAddress
from memory_service.snapshot import refuse_existing, seal_snapshot
from memory_service.spec import TableSpec
from memory_service.stats import LookupCounters
from memory_service.store import Store
from memory_service.stream import RowStream

_ATTEMPTS = {ShardUnavailable: 2, WrongEpoch: 6}  # all but the first under a placement read anew
_PAUSE_S = 0.01  # before the second retry, then doubled: shards take up a new placement one after the other
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
    """A stream that was silent for so long when a deadline passes is given up and opened anew."""
    down_s: float = 1.0
    """For how long a shard that failed is asked only for blocks that no other shard has."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"{name}={value} must be above 0")


class MemoryClient:
    """Looks rows up in the shards of a memory. Safe to use from several threads; connections open as needed."""

    def __init__(self, directory: Directory, config: ClientConfig) -> None:
        self.specs: Mapping[str, TableSpec] = directory.specs
        self._directory = directory
        self._config = config
        self._counters = LookupCounters()
        self._deadlines = Deadlines()
        self._retries = ThreadPoolExecutor(1, thread_name_prefix="memory-retry")
        self._lock = Lock()
        self._streams: dict[tuple[ShardAddress, str], RowStream] = {}
        self._down_until: dict[str, float] = {}
        self._closed = False

    @classmethod
    def connect(cls, address: str, timeout_s: float = 5.0, config: ClientConfig | None = None) -> "MemoryClient":
        """Join by the host:port of any shard and learn the others from it.

        ShardUnavailable naming the shard and its address if one does not answer within `timeout_s`.
        """
        return cls(Directory.read(address, timeout_s), config or ClientConfig())

    def lookup(self, table: str, rows: np.ndarray, timeout_s: float | None = None) -> Future[Rows]:
        """See Memory.lookup; the deadline is `timeout_s`, or the config's, from now on. Never blocks on a shard."""
        if self._closed:
            raise MemoryServiceError("this client is closed: connect a new one")
        spec = require_table(self.specs, table)
        started = time.monotonic()
        with self._counters.stage("dedup"):
            ids, inverse = distinct_rows(spec, rows)
        lookup = Lookup(spec, ids, inverse, started, self._config.lookup_timeout_s if timeout_s is None else timeout_s)
        key = self._deadlines.watch(lookup.deadline, lambda: self._expire(lookup))
        lookup.future.add_done_callback(lambda _: self._deadlines.cancel(key))
        with self._counters.stage("send"):
            self._attempt(lookup)
        return lookup.future

    def stats(self) -> MemoryStats:
        """Counters since the client connected."""
        return self._counters.snapshot()

    def snapshot(self, uri: str | Path) -> None:
        """Have all shards write their blocks below a directory that they and this process can reach, then seal it.

        SnapshotError if it holds a snapshot already. A failure leaves it unsealed, which is no snapshot.
        """
        store = Store(uri)
        refuse_existing(store)
        seal_snapshot(store, self._directory.write_tables(uri))

    def close(self) -> None:
        """Fail the lookups under way and end all threads and connections."""
        with self._lock:
            self._closed = True
            streams = list(self._streams.values())
            self._streams.clear()
        for stream in streams:
            stream.break_off("this client was closed")
        self._retries.shutdown(wait=True)
        self._deadlines.close()
        deadline = time.monotonic() + _LEAVE_S
        for stream in streams:
            if not stream.join(max(0.0, deadline - time.monotonic())):
                stream.abort("this client was closed")

    def _attempt(self, lookup: Lookup) -> None:
        """Ask every shard concerned under the current placement."""
        placement = self._directory.placement
        lookup.attempts += 1
        try:
            shards = self._choose(placement, lookup)
            assembly = lookup.assembly = Assembly(lookup, placement.epoch, shards, self._done, self._failed)
            for part in assembly.split(placement.shards, self._config.request_rows):
                part.stream = self._stream(part.shard, lookup.spec)
                part.stream.send(part)
            assembly.rearrange()
        except MemoryServiceError as error:
            self._reject(lookup, error)

    def _choose(self, placement: Placement, lookup: Lookup) -> NDArray[np.uint16]:
        """A shard for each id, [U]: the first replica, or the next one where that is down."""
        replicas = placement.assigned(lookup.spec.name)[:, lookup.ids >> lookup.spec.block_shift]
        now = time.monotonic()
        down = [i for i, shard in enumerate(placement.shards) if self._down_until.get(shard.shard, 0.0) > now]
        chosen = replicas[0]
        for other in replicas[1:] if down else ():
            chosen = np.where(np.isin(chosen, down), other, chosen)
        return chosen

    def _stream(self, shard: ShardAddress, spec: TableSpec) -> RowStream:
        with self._lock:
            if self._closed:
                raise MemoryServiceError("this client is closed: connect a new one")
            stream = self._streams.get((shard, spec.name))
            if stream is None or stream.retired:
                stream = self._streams[shard, spec.name] = RowStream(shard, spec, self._config.connect_timeout_s)
            return stream

    def _done(self, lookup: Lookup, assembly: Assembly, rows: Rows) -> None:
        if lookup.claim():
            seconds = time.monotonic() - lookup.started
            self._counters.answered(lookup.spec, lookup.inverse.size, len(lookup.ids), seconds, assembly.shard_rows)
            lookup.resolve(rows)

    def _failed(self, lookup: Lookup, assembly: Assembly, error: MemoryServiceError) -> None:
        """Try once more where the fault lies with a shard or the placement; otherwise end in the error."""
        if isinstance(error, ShardUnavailable) and error.shard:
            self._down_until[error.shard] = time.monotonic() + self._config.down_s
        if not (lookup.attempts < _ATTEMPTS.get(type(error), 1) and self._submit_retry(lookup, assembly.epoch)):
            self._reject(lookup, error)

    def _submit_retry(self, lookup: Lookup, epoch: int) -> bool:
        try:
            self._retries.submit(self._retry, lookup, epoch)
        except RuntimeError:
            return False  # the client is being closed
        return True

    def _retry(self, lookup: Lookup, epoch: int) -> None:
        if lookup.attempts > 1:
            time.sleep(_PAUSE_S * 2 ** (lookup.attempts - 2))
        try:
            self._directory.refresh(epoch, max(0.1, lookup.deadline - time.monotonic()))
        except MemoryServiceError as error:
            return self._reject(lookup, error)
        return self._attempt(lookup)

    def _reject(self, lookup: Lookup, error: MemoryServiceError) -> None:
        if lookup.claim():
            self._counters.failed()
            lookup.reject(error)

    def _expire(self, lookup: Lookup) -> None:
        owed = lookup.owed()
        self._reject(lookup, lookup.overdue(owed))
        for part in owed:
            if part.stream is not None:
                part.stream.forget(part)
                if part.stream.stalled(self._config.stall_s):
                    part.stream.abort(f"silent for {self._config.stall_s:g} s")
