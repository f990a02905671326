"""How many shards and replicas of hot blocks a pool should have under its load. Knows neither Ray nor the clock."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cluster.pool.policies.hot_blocks import SpreadConfig, spread_hot_blocks
from cluster.pool.policies.plan import Shape, Whereabouts
from memory_service.placement.placement import Placement
from memory_service.protocol.reports import ShardStats
from memory_service.tables.spec import TableSpec


@dataclass(frozen=True)
class AutoscaleConfig:
    """Limits of an autoscaler, and how quickly it reacts.

    Raises:
        ValueError: a value is out of range.
    """

    min_shards: int
    """Fewest shards the autoscaler may choose."""
    max_shards: int
    """Most shards the autoscaler may choose."""
    target: float = 0.6
    """Utilisation of a shard that a change of size aims at."""
    high: float = 0.75
    """Utilisation above which the pool grows."""
    low: float = 0.4
    """Utilisation below which, after `calm_s`, the pool shrinks."""
    calm_s: float = 300.0
    """Seconds to look back before shrinking: the pool keeps the largest size that its load called for in this time."""
    rest_s: float = 15.0
    """Seconds without growth after a change, so that the load on the new shards is measured first."""
    max_step: int = 4
    """Most shards added or removed at once."""
    shard_bytes: int | None = None
    """Memory for the blocks of one shard; None if a shard may take as much as its blocks need."""
    shard_bytes_per_s: float = 0.8e9
    """Row bytes a second that fully occupy one shard, network included."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_shards <= self.max_shards:
            raise ValueError(
                f"autoscale {self.min_shards}:{self.max_shards} is no range; write MIN:MAX, MIN at least 1"
            )
        if not 0 < self.low < self.target < self.high:
            raise ValueError(f"low={self.low}, target={self.target}, high={self.high} must rise in this order")
        for name in ("max_step", "shard_bytes", "shard_bytes_per_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be above 0")


@dataclass(frozen=True)
class PoolLoad:
    """What the shards of a pool did between two readings of their counters."""

    busy: tuple[float, ...]
    """Seconds per second that each shard worked on lookups."""
    bytes_per_s: tuple[float, ...]
    """Row bytes per second that each shard sent."""


@dataclass(frozen=True, eq=False)
class Reading:
    """The counters of the shards that answered at a time."""

    time: float
    """Seconds of any clock."""
    stats: Mapping[Whereabouts, ShardStats]

    def load_since(self, earlier: Reading) -> PoolLoad:
        """Return the load of each shard since an earlier reading. A shard that has restarted since is left out."""
        seconds = self.time - earlier.time
        pairs = self._pairs(earlier)
        busy = tuple((_working(new) - _working(old)) / seconds for old, new in pairs)
        return PoolLoad(busy, tuple((new.bytes - old.bytes) / seconds for old, new in pairs))

    def rows_since(self, earlier: Reading, specs: Iterable[TableSpec]) -> dict[str, NDArray[np.int64]]:
        """Return the rows requested of each block since an earlier reading: by table, [blocks]."""
        rows = {spec.name: np.zeros(spec.blocks, np.int64) for spec in specs}
        for old, new in self._pairs(earlier):
            for sign, stats in ((-1, old), (1, new)):
                for table, blocks in stats.block_rows.items():
                    rows[table][list(blocks)] += sign * np.array(list(blocks.values()), np.int64)
        return rows

    def _pairs(self, earlier: Reading) -> list[tuple[ShardStats, ShardStats]]:
        if self.time <= earlier.time:
            return []
        return [(earlier.stats[where], stats) for where, stats in self.stats.items() if where in earlier.stats]


@dataclass(frozen=True)
class Autoscaler:
    """Decides how many shards a pool should have. Grows at once, shrinks when the load has been low for long.

    Like the horizontal autoscaler of Kubernetes: the size that the load calls for is load / target, a band between
    `low` and `high` leaves it as it is, and a window over past calls keeps a dip from taking what a wave needs again.

    Raises:
        ValueError: the tables do not fit on `max_shards` shards.
    """

    config: AutoscaleConfig
    table_bytes: int
    """Bytes of all tables, replicas included."""
    called_for: tuple[tuple[float, int], ...] = ()
    """Time and size of the calls within the last `calm_s` seconds, oldest first."""
    started: float | None = None
    """Time of the first decision."""
    changed: float = -math.inf
    """Time of the last change of size."""

    def __post_init__(self) -> None:
        if self._fewest > self.config.max_shards:
            raise ValueError(
                f"autoscale {self.config.min_shards}:{self.config.max_shards}: the tables need {self._fewest} shards "
                f"of {self.config.shard_bytes} bytes; raise MAX or the memory of a shard"
            )

    def decide(self, now: float, shards: int, load: PoolLoad) -> tuple[Autoscaler, int]:
        """Return the autoscaler after this decision, and the number of shards there should be.

        Args:
            now: seconds of any clock.
            shards: how many shards there are.
            load: what each of them did since the last decision.
        """
        utilisation = self.utilisation(load)
        wanted = self._within(math.ceil(utilisation * shards / self.config.target - 1e-9))
        after = self._remembering(now, wanted)
        decided = self._within(shards)
        if utilisation > self.config.high and now - self.changed >= self.config.rest_s:
            decided = max(decided, min(wanted, shards + self.config.max_step))
        elif utilisation < self.config.low and after._is_calm(now):
            largest = max(size for _, size in after.called_for)
            decided = max(self._fewest, min(decided, max(largest, shards - self.config.max_step)))
        return (replace(after, changed=now) if decided != shards else after), decided

    def utilisation(self, load: PoolLoad) -> float:
        """Mean over the shards of how busy each is, by its processor or by its network, whichever is busier."""
        if not load.busy:
            return 0.0
        network = np.asarray(load.bytes_per_s) / self.config.shard_bytes_per_s
        return float(np.maximum(load.busy, network).mean())

    @property
    def _fewest(self) -> int:
        by_memory = math.ceil(self.table_bytes / self.config.shard_bytes) if self.config.shard_bytes else 1
        return max(self.config.min_shards, by_memory)

    def _within(self, shards: int) -> int:
        return min(max(shards, self._fewest), self.config.max_shards)

    def _remembering(self, now: float, wanted: int) -> Autoscaler:
        recent = [call for call in self.called_for if call[0] >= now - self.config.calm_s]
        started = now if self.started is None else self.started
        return replace(self, called_for=(*recent, (now, wanted)), started=started)

    def _is_calm(self, now: float) -> bool:
        """Whether there is enough past to judge by, and the last change is as old as that."""
        assert self.started is not None, "_remembering() comes first"
        return now - max(self.started, self.changed) >= self.config.calm_s


@dataclass(frozen=True, eq=False)
class Tuner:
    """Chooses the shape of a pool from readings of the shards' counters, some seconds apart."""

    specs: Sequence[TableSpec]
    autoscaler: Autoscaler
    last: Reading | None = None
    """The reading before."""

    def decide(self, reading: Reading, shape: Shape, placement: Placement) -> tuple[Tuner, Shape]:
        """Return the tuner after this reading, and the shape that the pool should have; `shape` if that will do."""
        after, last = replace(self, last=reading), self.last
        load = reading.load_since(last) if last else PoolLoad((), ())
        if last is None or not load.busy:
            return after, shape
        autoscaler, shards = self.autoscaler.decide(reading.time, shape.shards, load)
        after = replace(after, autoscaler=autoscaler)
        if shards != shape.shards:
            return after, replace(shape, shards=shards)
        rows = reading.rows_since(last, self.specs)
        return after, replace(shape, extra=spread_hot_blocks(rows, placement, shape.extra, SpreadConfig()))


def _working(stats: ShardStats) -> float:
    return sum(spent.seconds for stage, spent in stats.stages.items() if stage != "queue")
