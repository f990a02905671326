"""What a shard reports: its counters, and what a preparation brought."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from memory_service.metrics.metrics import NO_SECONDS, Distribution

BlockRows = Mapping[str, Mapping[int, int]]
"""By table and block: requested rows, estimated from a sample. Blocks without requests are left out."""


@dataclass(frozen=True)
class ShardStats:
    """Counters of a shard since it was made; a snapshot of values, not a live view."""

    requests: int = 0
    """Lookups answered with rows."""
    expired: int = 0
    """Lookups dropped because their time was up before their turn came."""
    rows: int = 0
    bytes: int = 0
    refused_by: Mapping[str, int] = field(default_factory=dict)
    """Lookups answered with an error, by what the error is called on the wire."""
    streams: int = 0
    """Streams that clients hold open now."""
    started: float = 0.0
    """When the shard was made, in Unix time."""
    latency: Distribution = NO_SECONDS
    """Time from reading a request to having written its reply."""
    stages: Mapping[str, Distribution] = field(default_factory=dict)
    """Time by stage: "queue", "locate", "gather", "write"."""
    incarnation: str = ""
    """Of the server that answered; empty where no server was asked."""
    block_rows: BlockRows = field(default_factory=dict)
    """How often each block was asked for, where that was asked for."""

    @property
    def refused(self) -> int:
        """Lookups answered with an error."""
        return sum(self.refused_by.values())


@dataclass(frozen=True)
class Prepared:
    """Where a shard got the blocks of a placement from, over all tables."""

    kept: int = 0
    """Blocks that it held already."""
    copied: int = 0
    """Blocks that other shards gave."""
    loaded: int = 0
    """Blocks read from the snapshot."""
    bytes: int = 0
    """Bytes of the blocks copied and loaded."""

    def __add__(self, other: Prepared) -> Prepared:
        return Prepared(
            self.kept + other.kept,
            self.copied + other.copied,
            self.loaded + other.loaded,
            self.bytes + other.bytes,
        )
