"""How patient a memory pool is, and whether it chooses its own size."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from cluster.pool.policies.autoscale import AutoscaleConfig
from memory_service.server.limits import DoorLimits


@dataclass(frozen=True)
class PoolConfig:
    """Intervals and timeouts of a memory pool.

    Raises:
        ValueError: an interval or timeout is not above 0.
    """

    check_s: float = 0.5
    """Seconds between two health checks of the shards."""
    probe_s: float = 1.0
    """Timeout of one health check in seconds."""
    unresponsive_s: float = 10.0
    """Seconds until a shard that accepts connections and does not answer is restarted."""
    give_up_s: float = 30.0
    """Seconds until the blocks of a shard that does not answer are given to the others, until it is back."""
    start_s: float = 120.0
    """Seconds that a new shard may take to start."""
    grace_s: float = 2.0
    """Seconds an old placement stays valid after its successor is activated."""
    spread_s: float = 10.0
    """Seconds between two moves of a shard to another node."""
    autoscale: AutoscaleConfig | None = None
    """Limits within which the load decides the number of shards and the replicas of hot blocks; None for never."""
    load_s: float = 10.0
    """Seconds over which the load is measured."""
    limits: DoorLimits = field(default_factory=DoorLimits)
    """Limits of the doors of every shard."""

    def __post_init__(self) -> None:
        for name in (item.name for item in fields(self) if item.name.endswith("_s")):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"{name}: {value!r} is no time to wait; give seconds above 0")
