"""How many shards a pool should have, from the load that they measure. Knows neither Ray nor the clock."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class AutoscaleConfig:
    """Limits and temper of an autoscaler."""

    min_shards: int
    max_shards: int
    target: float = 0.6
    """Utilisation of a shard that a change of size aims at."""
    high: float = 0.75
    """Above this the pool grows."""
    low: float = 0.4
    """Below this, for `calm_s`, it shrinks."""
    calm_s: float = 300.0
    """A pool is not made smaller than the largest size that its load called for within this time."""
    rest_s: float = 15.0
    """After a change, no growth for so long: the load on the new shards must have been measured first."""
    max_step: int = 4
    """Shards added or taken away at once."""
    shard_bytes: int | None = None
    """Memory for the blocks of one shard; None for as much as they need."""
    shard_bytes_per_s: float = 0.8e9
    """Row bytes a second that keep one shard fully busy, network included."""

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
    """Seconds that each shard worked on lookups, per second."""
    bytes_per_s: tuple[float, ...]
    """Row bytes that each shard gave out, per second."""


class Autoscaler:
    """Decides how many shards a pool should have. Grows at once, shrinks when it has been calm for long.

    Like the horizontal autoscaler of Kubernetes: the size that the load calls for is load / target, a band between
    `low` and `high` leaves it as it is, and a window over past calls keeps a dip from taking what a wave needs again.
    """

    def __init__(self, config: AutoscaleConfig, table_bytes: int) -> None:
        """`table_bytes`: of all tables, replicas included."""
        self.config = config
        self._least = config.min_shards
        if config.shard_bytes is not None:
            self._least = max(self._least, math.ceil(table_bytes / config.shard_bytes))
        if self._least > config.max_shards:
            raise ValueError(
                f"autoscale {config.min_shards}:{config.max_shards}: the tables need {self._least} shards of "
                f"{config.shard_bytes} bytes; raise MAX or the memory of a shard"
            )
        self._called_for: deque[tuple[float, int]] = deque()
        self._started: float | None = None
        self._changed = -math.inf

    def decide(self, now: float, shards: int, load: PoolLoad) -> int:
        """Return the number of shards there should be, given how many there are; `now` in seconds of any clock."""
        utilisation = self.utilisation(load)
        wanted = self._within(math.ceil(utilisation * shards / self.config.target - 1e-9))
        self._remember(now, wanted)
        decided = self._within(shards)
        if utilisation > self.config.high and now - self._changed >= self.config.rest_s:
            decided = max(decided, min(wanted, shards + self.config.max_step))
        elif utilisation < self.config.low and self._is_calm(now):
            most = max(size for _, size in self._called_for)
            decided = max(self._least, min(decided, max(most, shards - self.config.max_step)))
        if decided != shards:
            self._changed = now
        return decided

    def utilisation(self, load: PoolLoad) -> float:
        """Mean over the shards of how busy each is, by its processor or by its network, whichever is busier."""
        if not load.busy:
            return 0.0
        network = np.asarray(load.bytes_per_s) / self.config.shard_bytes_per_s
        return float(np.maximum(load.busy, network).mean())

    def _within(self, shards: int) -> int:
        return min(max(shards, self._least), self.config.max_shards)

    def _remember(self, now: float, wanted: int) -> None:
        self._started = now if self._started is None else self._started
        self._called_for.append((now, wanted))
        while self._called_for[0][0] < now - self.config.calm_s:
            self._called_for.popleft()

    def _is_calm(self, now: float) -> bool:
        """Whether there is enough past to judge by, and the last change is as old as that."""
        assert self._started is not None, "_remember() comes first"
        return now - max(self._started, self._changed) >= self.config.calm_s
