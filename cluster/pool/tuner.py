"""What shape a pool should take under its load: how many shards, and which blocks with further replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cluster.pool.autoscale import AutoscaleConfig, Autoscaler
from cluster.pool.hot_blocks import SpreadConfig, spread_hot_blocks
from cluster.pool.load import LoadMeter, Readings
from cluster.pool.plan import Shape
from memory_service.placement.placement import Placement
from memory_service.tables.spec import TableSpec


class PoolTuner:
    """Draws its conclusions from readings of the shards' counters, some seconds apart."""

    def __init__(self, config: AutoscaleConfig, specs: Sequence[TableSpec], shape: Shape) -> None:
        """ValueError if the tables do not fit within the limits."""
        self._autoscaler = Autoscaler(config, shape.bytes_of(specs))
        self._meter = LoadMeter(specs)

    def decide(self, now: float, readings: Readings, shape: Shape, placement: Placement) -> Shape:
        """Return the shape that a pool should have; the one it has if that will do. `now` in seconds of any clock."""
        load, rows = self._meter.read(now, readings)
        if not load.busy:
            return shape
        shards = self._autoscaler.decide(now, shape.shards, load)
        if shards != shape.shards:
            return replace(shape, shards=shards)
        return replace(shape, extra=spread_hot_blocks(rows, placement, shape.extra, SpreadConfig()))
