"""Counters of a memory's lookups, on the client's side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from memory_service.memory import MemoryStats
from memory_service.metrics.catalogue import (
    CLIENT_BYTES,
    CLIENT_EVENTS,
    CLIENT_FAILED,
    CLIENT_LOOKUP_SECONDS,
    CLIENT_LOOKUPS,
    CLIENT_ROWS,
    CLIENT_SHARD_ROWS,
    CLIENT_STAGE_SECONDS,
    CLIENT_UNIQUE_ROWS,
)
from memory_service.metrics.metrics import Histogram, Metrics, Sample
from memory_service.tables.spec import TableSpec


class LookupCounters:
    """The metrics of a client or a local memory. Safe to use from several threads."""

    def __init__(self) -> None:
        self._metrics = Metrics()
        self._sources: list[Callable[[], None]] = []
        self._seconds = self._metrics.histogram(CLIENT_LOOKUP_SECONDS)
        self._answered = self._metrics.family(CLIENT_LOOKUPS, CLIENT_ROWS, CLIENT_UNIQUE_ROWS, CLIENT_BYTES)

    def feed(self, source: Callable[[], None]) -> None:
        """Call `source`, which adds what was counted elsewhere, before each reading of the counters."""
        self._sources.append(source)

    def answered(self, spec: TableSpec, rows: int, unique_rows: int, seconds: float) -> None:
        """Count a lookup that ended in rows."""
        self._answered.add(spec.name, 1, rows, unique_rows, unique_rows * spec.row_bytes)
        self._seconds.observe(seconds)

    def failed(self) -> None:
        """Count a lookup that ended in an error."""
        self._metrics.counter(CLIENT_FAILED).add()

    def shard_rows(self, shard: str, rows: int) -> None:
        """Count rows that a shard delivered."""
        self._metrics.counter(CLIENT_SHARD_ROWS, shard).add(rows)

    def count(self, name: str, number: int = 1) -> None:
        """Count an event, one of CLIENT_EVENTS."""
        self._metrics.counter(CLIENT_EVENTS[name]).add(number)

    def stage(self, name: str) -> _Stage:
        """A context manager that records the time spent in it for a stage."""
        return _Stage(self._metrics.histogram(CLIENT_STAGE_SECONDS, name))

    def spent(self, stage: str, seconds: float) -> None:
        """Record the time that a stage of a lookup took."""
        self._metrics.histogram(CLIENT_STAGE_SECONDS, stage).observe(seconds)

    def add(self, spec: TableSpec, lookups: int, rows: int, unique_rows: int) -> None:
        """Count lookups that ended in rows and were counted elsewhere; their durations are added on their own."""
        self._answered.add(spec.name, lookups, rows, unique_rows, unique_rows * spec.row_bytes)

    def add_durations(self, stage: str | None, counts: Sequence[int], seconds: float) -> None:
        """Add durations of a stage, or of whole lookups if None, that were counted by bucket elsewhere."""
        histogram = self._seconds if stage is None else self._metrics.histogram(CLIENT_STAGE_SECONDS, stage)
        histogram.add(counts, seconds)

    def collect(self) -> Iterator[Sample]:
        """Current values of all metrics."""
        self._read_sources()
        return self._metrics.collect()

    def snapshot(self) -> MemoryStats:
        """Current values of the counters."""
        self._read_sources()
        total, latency = self._metrics.total, self._seconds.value
        stages = self._metrics.distributions(CLIENT_STAGE_SECONDS)
        return MemoryStats(
            lookups=total(CLIENT_LOOKUPS),
            failed=total(CLIENT_FAILED),
            rows=total(CLIENT_ROWS),
            unique_rows=total(CLIENT_UNIQUE_ROWS),
            bytes=total(CLIENT_BYTES),
            lookup_seconds=latency.seconds,
            shard_rows={shard: rows for (shard,), rows in self._metrics.values(CLIENT_SHARD_ROWS).items()},
            stage_seconds={stage: spent.seconds for (stage,), spent in stages.items()},
            latency=latency,
            **{name: total(metric) for name, metric in CLIENT_EVENTS.items()},
        )

    def _read_sources(self) -> None:
        for source in self._sources:
            source()


class _Stage:
    """Records the time spent in a `with` block, at less than half the cost of a generator-based context manager."""

    __slots__ = ("_histogram", "_start")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._histogram.observe(time.perf_counter() - self._start)
