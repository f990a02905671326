"""What a shard counts about the lookups that it serves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

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
from memory_service.protocol.status import reason_of

STAGES = ("queue", "locate", "gather", "write")


class ShardCounters:
    """The metrics of one shard. Safe to use from several threads."""

    def __init__(self) -> None:
        self._metrics = Metrics()
        self._started = time.time()
        self._answered = self._metrics.family(SHARD_LOOKUPS, SHARD_ROWS, SHARD_BYTES)
        self._expired = self._metrics.counter(SHARD_EXPIRED)
        self._streams = self._metrics.gauge(SHARD_STREAMS)
        self._latency = self._metrics.histogram(SHARD_LOOKUP_SECONDS)
        self._stages = {stage: self._metrics.histogram(SHARD_STAGE_SECONDS, stage) for stage in STAGES}

    def answered(self, table: str, rows: int, size: int) -> None:
        """One lookup ended in so many rows and bytes."""
        self._answered.add(table, 1, rows, size)

    def refused(self, error: Exception) -> None:
        """One lookup ended in an error."""
        self._metrics.counter(SHARD_REFUSED, reason_of(error)).add()

    def expired(self) -> None:
        """One lookup was dropped because its time was up."""
        self._expired.add()

    def took(self, seconds: float) -> None:
        """So long from reading a request to having written its reply."""
        self._latency.observe(seconds)

    def spent(self, stage: str, seconds: float) -> None:
        """One of STAGES took so long."""
        self._stages[stage].observe(seconds)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Count an open stream for as long as the block lasts."""
        self._streams.add()
        try:
            yield
        finally:
            self._streams.add(-1)

    def snapshot(self) -> ShardStats:
        """The counters as they stand."""
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
        """Every counter as it stands."""
        yield Sample(SHARD_START, (), self._started)
        yield from self._metrics.collect()
