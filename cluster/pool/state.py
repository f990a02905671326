"""What the controller of a memory pool knows, sees and can do: plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cluster.pool.policies.autoscale import Tuner
from cluster.pool.policies.node_spread import Spreader
from cluster.pool.policies.plan import Goal, PoolPlan, Shape, Whereabouts
from cluster.pool.report import ScaleReport
from cluster.pool.watch import Sighting
from memory_service.placement.placement import Placement


@dataclass(frozen=True)
class StartShard:
    """Start a shard's process."""

    shard: str
    node: str | None = None
    """The node to prefer; None for any."""


@dataclass(frozen=True)
class RestartShard:
    """End the process of a shard that hangs; the fleet starts it again."""

    shard: str


@dataclass(frozen=True)
class StopShard:
    """End a shard for good. Takes seconds."""

    shard: str


@dataclass(frozen=True, eq=False)
class Reshape:
    """Have shards prepare and activate a placement. Takes as long as blocks have to travel, up to an hour."""

    current: Placement | None
    """The placement served."""
    target: Placement
    retire: bool
    """Whether placements older than `current` have to be retired first."""


@dataclass(frozen=True)
class AbandonReshape:
    """End the reshape under way: it cannot succeed."""


@dataclass(frozen=True, eq=False)
class Retire:
    """Have shards forget the placements before this. Takes seconds if a shard hangs."""

    placement: Placement


@dataclass(frozen=True)
class SaveGoal:
    """Have the shards remember what the pool should be."""

    goal: Goal


@dataclass(frozen=True)
class Conclude:
    """Report how a change of shape ended."""

    request: int | None
    """Number of the request for it; None if the pool itself decided on the change."""
    result: ScaleReport | Exception


Action = StartShard | RestartShard | StopShard | Reshape | AbandonReshape | Retire | SaveGoal | Conclude


@dataclass(frozen=True)
class ScaleRequest:
    """A call of `scale`: new numbers of shards and replicas; None keeps the present number."""

    number: int
    shards: int | None = None
    replicas: int | Mapping[str, int] | None = None

    def applied_to(self, shape: Shape) -> Shape:
        """Return the shape with these numbers.

        Raises:
            ValueError: a number is out of range.
        """
        shards = shape.shards if self.shards is None else self.shards
        return replace(shape, shards=shards, replicas=shape.replicas if self.replicas is None else self.replicas)


@dataclass(frozen=True)
class Done:
    """A `Reshape`, `Retire` or `StopShard` that has ended."""

    action: Action
    error: Exception | None = None


@dataclass(frozen=True)
class Observation(Sighting):
    """What one round of the controller observes."""

    running: frozenset[str] = frozenset()
    """The shards that the fleet runs."""
    stopping: frozenset[str] = frozenset()
    """Those of them that are being stopped."""
    nodes_with_room: frozenset[str] = frozenset()
    """The nodes that one more shard may be started on."""
    counts_blocks: bool = False
    """Whether the counters include those of each block."""
    requests: tuple[ScaleRequest, ...] = ()
    """Requests that arrived since the last round."""
    done: tuple[Done, ...] = ()
    """Actions that ended since the last round."""

    @property
    def nodes(self) -> dict[str, str]:
        """The node of each shard that answered."""
        return {where.shard: where.node for where in self.up}


@dataclass(frozen=True, eq=False)
class Change:
    """A change of shape under way."""

    fallback: Shape
    """The shape to go back to if the wanted shape cannot be reached."""
    placement: Placement | None
    """The placement served before."""
    began: float
    """Time of its beginning."""
    request: int | None = None
    """Number of the request for it; None if the pool itself decided on the change."""
    nodes: Mapping[str, str] = field(default_factory=dict)
    """Where new shards should be started, if anywhere in particular."""

    @classmethod
    def of(
        cls, state: PoolState, now: float, request: int | None = None, nodes: Mapping[str, str] | None = None
    ) -> Change:
        """A change from what is wanted and served in a state."""
        return cls(state.plan.wanted, state.plan.placement, now, request, nodes or {})


@dataclass(frozen=True, eq=False)
class PoolState:
    """What the controller carries from one round to the next."""

    plan: PoolPlan
    spreader: Spreader
    tuner: Tuner | None = None
    requests: tuple[ScaleRequest, ...] = ()
    """Requests that have to wait for their turn."""
    change: Change | None = None
    """The change of shape under way; None if there is none."""
    retire_at: float | None = None
    """Time to retire older placements than the one served; None if they are retired."""
    retiring: bool = False
    """Whether a `Retire` is under way."""
    failure: Exception | None = None
    """Error of the last reshape; None if it succeeded."""
    pause_s: float = 0.0
    """Seconds waited after the last reshape if it failed."""
    retry_at: float = -math.inf
    """Time before which no reshape begins."""
    saved: tuple[Goal, frozenset[Whereabouts]] | None = None
    """The goal saved last, and the shards that remember it."""

    @property
    def goal(self) -> Goal:
        """What shards should remember."""
        return Goal(self.plan.wanted, self.change.fallback if self.change else None)
