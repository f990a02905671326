"""Which blocks are requested so often that extra replicas should share their load. Knows neither Ray nor the clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.pool.policies.plan import BlockReplicas
from memory_service.placement.placement import Placement

BlockLoad = Mapping[str, NDArray[np.int64]]
"""Rows requested of each block: by table, [blocks]."""
_PIECES = (0.5, 0.25, 0.12, 0.06, 0.03)
"""Largest load of one replica of a block, as a fraction of a shard's mean load: tried from large to small."""


@dataclass(frozen=True)
class SpreadConfig:
    """When hot blocks get extra replicas, and how many."""

    worst: float = 1.2
    """Load of the busiest shard over the mean, up to which nothing is done."""
    most_extra: float = 0.1
    """Most extra replicas, as a fraction of all block replicas."""
    least_rows: int = 100_000
    """Fewest requested rows to judge by: with fewer, chance alone makes blocks look hot."""


def spread_hot_blocks(
    load: BlockLoad, placement: Placement, extra: BlockReplicas, config: SpreadConfig
) -> BlockReplicas:
    """Return the extra replicas that blocks should have under a load.

    A block whose load is more than a piece of a shard's mean load gets so many replicas that none carries more than
    that. The largest piece is chosen that brings the busiest shard within `worst` of the mean, as far as memory allows.

    Args:
        load: rows requested of each block.
        placement: the placement under which they were requested.
        extra: the extra replicas that blocks have in this placement.
        config: limits.
    """
    if sum(int(rows.sum()) for rows in load.values()) < config.least_rows:
        return extra
    even = imbalance(load, placement) <= config.worst
    if even and not extra:
        return extra
    bare = {table: _replicas(placement, table) - _counts(placement, table, extra) for table in placement.tables}
    best = _choose(load, placement, bare, config)
    if even and 2 * _size(best) >= _size(extra):
        return extra  # a slightly better answer is not worth moving blocks about
    return best


def imbalance(load: BlockLoad, placement: Placement) -> float:
    """Load of the busiest shard over the mean, if the replicas of a block share its load evenly."""
    shards = shard_load(load, placement)
    return float(shards.max() / shards.mean()) if shards.any() else 1.0


def shard_load(load: BlockLoad, placement: Placement) -> NDArray[np.float64]:
    """Rows requested of each shard, [shards], if the replicas of a block share its load evenly."""
    names = [shard.shard for shard in placement.shards]
    total = np.zeros(len(names))
    for table, rows in load.items():
        held = placement.held(table, names)
        total += (rows / held.sum(axis=1)) @ held
    return total


def _choose(load: BlockLoad, placement: Placement, bare: BlockLoad, config: SpreadConfig) -> BlockReplicas:
    """The fewest extra replicas that make the load even enough; the best that memory allows if none do."""
    replicas = {table: int(counts.min()) for table, counts in bare.items()}
    most = config.most_extra * sum(int(counts.sum()) for counts in bare.values())
    shards = len(placement.shards)
    mean = sum(int(rows.sum()) for rows in load.values()) / shards
    best: BlockReplicas = {}
    least = np.inf
    for piece in (np.inf, *_PIECES):
        extra = {table: _beyond(rows, piece * mean, replicas[table], shards) for table, rows in load.items()}
        if sum(int(counts.sum()) for counts in extra.values()) > most:
            break
        found = imbalance(load, placement.evolve(placement.epoch, placement.shards, replicas, extra))
        if found < least:
            best, least = _sparse(extra), found
        if least <= config.worst:
            break
    return best


def _beyond(rows: NDArray[np.int64], piece: float, replicas: int, shards: int) -> NDArray[np.int64]:
    """Replicas beyond `replicas` that leave no replica of a block with more than `piece` rows."""
    wanted = np.minimum(np.ceil(rows / piece), shards).astype(np.int64)
    return np.maximum(wanted - replicas, 0)


def _replicas(placement: Placement, table: str) -> NDArray[np.int64]:
    return placement.held(table, [shard.shard for shard in placement.shards]).sum(axis=1)


def _counts(placement: Placement, table: str, extra: BlockReplicas) -> NDArray[np.int64]:
    counts = np.zeros(placement.tables[table].shape[1], np.int64)
    for block, count in extra.get(table, {}).items():
        counts[block] = count
    return counts


def _sparse(extra: BlockLoad) -> BlockReplicas:
    found = {table: np.flatnonzero(counts) for table, counts in extra.items()}
    return {
        table: dict(zip(blocks.tolist(), extra[table][blocks].tolist(), strict=True))
        for table, blocks in found.items()
        if len(blocks)
    }


def _size(extra: BlockReplicas) -> int:
    return sum(sum(blocks.values()) for blocks in extra.values())
