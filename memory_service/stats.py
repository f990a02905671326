"""Counters that many threads add to."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from memory_service.memory import MemoryStats


class LookupCounters:
    """What a memory counts about its lookups."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: Counter[str] = Counter()
        self._shard_rows: Counter[str] = Counter()
        self._stage_seconds: dict[str, float] = {}
        self._lookup_seconds = 0.0

    def answered(self, rows: int, unique_rows: int, row_bytes: int, seconds: float) -> None:
        """One lookup ended in rows."""
        with self._lock:
            self._totals.update(lookups=1, rows=rows, unique_rows=unique_rows, bytes=unique_rows * row_bytes)
            self._lookup_seconds += seconds

    def failed(self) -> None:
        """One lookup ended in an error."""
        with self._lock:
            self._totals["failed"] += 1

    def delivered(self, shard: str, rows: int) -> None:
        """A shard delivered rows."""
        with self._lock:
            self._shard_rows[shard] += rows

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent in the block to a stage."""
        start = time.perf_counter()
        yield
        self.spent(name, time.perf_counter() - start)

    def spent(self, name: str, seconds: float) -> None:
        """Add time to a stage."""
        with self._lock:
            self._stage_seconds[name] = self._stage_seconds.get(name, 0.0) + seconds

    def snapshot(self) -> MemoryStats:
        """The counters as they stand."""
        with self._lock:
            return MemoryStats(
                **self._totals,
                lookup_seconds=self._lookup_seconds,
                shard_rows=dict(self._shard_rows),
                stage_seconds=dict(self._stage_seconds),
            )
