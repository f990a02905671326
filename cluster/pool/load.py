"""Load of a pool from the counters of its shards: what they did between two readings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from cluster.pool.autoscale import PoolLoad
from cluster.pool.plan import Whereabouts
from memory_service.protocol.reports import ShardStats
from memory_service.tables.spec import TableSpec

Readings = Mapping[Whereabouts, ShardStats]


class LoadMeter:
    """Remembers the last reading. A shard that was not in it, or has started again since, counts from the next one."""

    def __init__(self, specs: Iterable[TableSpec]) -> None:
        self._specs = tuple(specs)
        self._last: tuple[float, Readings] | None = None

    def read(self, now: float, readings: Readings) -> tuple[PoolLoad, dict[str, NDArray[np.int64]]]:
        """Return the load of each shard, and the rows asked for of each block by table, since the last reading."""
        then, before = self._last or (now, {})
        self._last = now, readings
        known = [(before[where], stats) for where, stats in readings.items() if where in before]
        if not known or now <= then:
            return PoolLoad((), ()), {}
        seconds = now - then
        busy = tuple((_working(new) - _working(old)) / seconds for old, new in known)
        return PoolLoad(busy, tuple((new.bytes - old.bytes) / seconds for old, new in known)), self._by_block(known)

    def _by_block(self, known: Iterable[tuple[ShardStats, ShardStats]]) -> dict[str, NDArray[np.int64]]:
        rows = {spec.name: np.zeros(spec.blocks, np.int64) for spec in self._specs}
        for old, new in known:
            for sign, stats in ((-1, old), (1, new)):
                for table, blocks in stats.block_rows.items():
                    rows[table][list(blocks)] += sign * np.array(list(blocks.values()), np.int64)
        return rows


def _working(stats: ShardStats) -> float:
    return sum(spent.seconds for stage, spent in stats.stages.items() if stage != "queue")
