"""Metrics of the lookups that a shard serves."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from memory_service.metrics.catalogue import (
    SHARD_BYTES,
    SHARD_EXPIRED,
    SHARD_LOOKUP_SECONDS,
    SHARD_LOOKUPS,
    SHARD_REFUSED,
    SHARD_ROWS,
    SHARD_STAGE_SECONDS,
    SHARD_START,
    SHARD_STREAMS,
)
from memory_service.metrics.metrics import Metrics, Sample
from memory_service.protocol.reports import ShardStats
from memory_service.protocol.status import error_of, reason_of

STAGES = ("queue", "locate", "gather", "write")
"""Stages of a lookup in a shard, in order."""


class ShardCounters:
    """Metrics of one shard. Safe to use from several threads."""

    def __init__(self) -> None:
        self._metrics = Metrics()
        self._started = time.time()
        self._answered = self._metrics.family(SHARD_LOOKUPS, SHARD_ROWS, SHARD_BYTES)
        self._expired = self._metrics.counter(SHARD_EXPIRED)
        self._streams = self._metrics.gauge(SHARD_STREAMS)
        self._latency = self._metrics.histogram(SHARD_LOOKUP_SECONDS)
        self._stages = {stage: self._metrics.histogram(SHARD_STAGE_SECONDS, stage) for stage in STAGES}

    def answered(self, table: str, rows: int, size: int) -> None:
        """Count a lookup that ended in rows of `size` bytes together."""
        self._answered.add(table, 1, rows, size)

    def refused(self, error: Exception) -> None:
        """Count a lookup that ended in an error."""
        self._metrics.counter(SHARD_REFUSED, reason_of(error)).add()

    def expired(self) -> None:
        """Count a lookup that was dropped because its deadline had passed."""
        self._expired.add()

    def took(self, seconds: float) -> None:
        """Record the time from reading a request to having written its reply."""
        self._latency.observe(seconds)

    def spent(self, stage: str, seconds: float) -> None:
        """Record the time that one of STAGES took."""
        self._stages[stage].observe(seconds)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """A context manager that counts an open stream."""
        self._streams.add()
        try:
            yield
        finally:
            self._streams.add(-1)

    def absorb(self, counts: Mapping[str, Any]) -> None:
        """Add what native readers have counted since the last call."""
        for table, (lookups, rows, size) in counts["tables"].items():
            self._answered.add(table, lookups, rows, size)
        for status, number in counts["refused"].items():
            self._metrics.counter(SHARD_REFUSED, reason_of(error_of(status, ""))).add(number)
        self._expired.add(counts["expired"])
        self._streams.add(counts["streams"])
        self._latency.add(*counts["latency"])
        for stage, durations in counts["stages"].items():
            self._stages[stage].add(*durations)

    def snapshot(self) -> ShardStats:
        """Current values of the counters."""
        total = self._metrics.total
        return ShardStats(
            requests=total(SHARD_LOOKUPS),
            expired=self._expired.value,
            rows=total(SHARD_ROWS),
            bytes=total(SHARD_BYTES),
            refused_by={reason: number for (reason,), number in self._metrics.values(SHARD_REFUSED).items()},
            streams=self._streams.value,
            started=self._started,
            latency=self._latency.value,
            stages={stage: histogram.value for stage, histogram in self._stages.items()},
        )

    def collect(self) -> Iterator[Sample]:
        """Current values of all metrics."""
        yield Sample(SHARD_START, (), self._started)
        yield from self._metrics.collect()
