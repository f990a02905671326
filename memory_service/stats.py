"""Counters that many threads add to."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from memory_service.memory import MemoryStats
from memory_service.spec import TableSpec


class LookupCounters:
    """What a memory counts about its lookups."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: Counter[str] = Counter()
        self._shard_rows: Counter[str] = Counter()
        self._stage_seconds: dict[str, float] = {}
        self._lookup_seconds = 0.0

    def answered(self, spec: TableSpec, rows: int, unique_rows: int, seconds: float) -> None:
        """One lookup ended in rows."""
        with self._lock:
            self._totals.update(lookups=1, rows=rows, unique_rows=unique_rows, bytes=unique_rows * spec.row_bytes)
            self._lookup_seconds += seconds

    def shard_rows(self, shard: str, rows: int) -> None:
        """A shard delivered some rows."""
        with self._lock:
            self._shard_rows[shard] += rows

    def count(self, name: str, number: int = 1) -> None:
        """Something happened so many times."""
        with self._lock:
            self._totals[name] += number

    def failed(self) -> None:
        """One lookup ended in an error."""
        with self._lock:
            self._totals["failed"] += 1

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent in the block to a stage."""
        start = time.perf_counter()
        yield
        spent = time.perf_counter() - start
        with self._lock:
            self._stage_seconds[name] = self._stage_seconds.get(name, 0.0) + spent

    def snapshot(self) -> MemoryStats:
        """The counters as they stand."""
        with self._lock:
            return MemoryStats(
                **self._totals,
                lookup_seconds=self._lookup_seconds,
                shard_rows=dict(self._shard_rows),
                stage_seconds=dict(self._stage_seconds),
            )
