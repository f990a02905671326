"""Reports of a memory pool: what it is, and what a change of its shape did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.pool.policies.plan import Shape
from memory_service.placement.placement import Placement
from memory_service.protocol.reports import ShardStats


@dataclass(frozen=True)
class PoolDescription:
    """A pool at one moment."""

    shape: Shape
    """The shape that the pool should have."""
    placement: Placement | None
    """The placement served; None until every shard has started once."""
    stats: Mapping[str, ShardStats]
    """Counters of each shard that answers, since it last started."""
    nodes: Mapping[str, str]
    """Node of each shard that answers."""
    at_rest: bool
    """Whether nothing is under way or called for: every shard of the shape answers and serves, on the node where it
    should be."""


@dataclass(frozen=True)
class ScaleReport:
    """What a change of shape did."""

    epoch: int
    shards: int
    replicas: int
    """Replicas of the block that has the most."""
    moved: int
    """Block replicas that shards copied or read."""
    ideal: int
    """Fewest block replicas that could have moved: fair shares of new shards, all of leaving shards, extra replicas."""
    blocks: int
    """Block replicas in the pool now."""
    seconds: float
    """Seconds from the beginning of the change until clients and processes had moved."""

    @classmethod
    def of(cls, old: Placement | None, new: Placement, seconds: float) -> ScaleReport:
        """Compare two placements; without an old one, every block has moved."""
        before, after = _held(old) if old else {}, _held(new)
        total = sum(after.values())
        stayed = sum(blocks for shard, blocks in before.items() if shard in after)
        joined = len(after.keys() - before.keys()) * total // len(after)
        return cls(
            epoch=new.epoch,
            shards=len(after),
            replicas=max(len(assigned) for assigned in new.tables.values()),
            moved=new.moves_from(old) if old else total,
            ideal=max(joined, total - stayed, 0),
            blocks=total,
            seconds=seconds,
        )

    def to_text(self) -> str:
        """The report as a line of text."""
        share = f"{self.moved:,} of {self.blocks:,} block replicas (ideal {self.ideal:,})"
        counts = f"{_count(self.shards, 'shard')}, {_count(self.replicas, 'replica')}"
        return f"{counts}, epoch {self.epoch}: moved {share} in {self.seconds:.1f} s"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")


def _held(placement: Placement) -> dict[str, int]:
    """Block replicas by shard."""
    names = [shard.shard for shard in placement.shards]
    counts = sum(placement.held(table, names).sum(axis=0) for table in placement.tables)
    return dict(zip(names, counts.tolist(), strict=True))
