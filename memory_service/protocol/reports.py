"""What a shard reports: its counters, and the result of preparing a placement."""

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
    """Requests answered with rows."""
    expired: int = 0
    """Requests dropped because their deadline had passed when they were read."""
    rows: int = 0
    """Rows sent."""
    bytes: int = 0
    """Bytes of the rows sent."""
    refused_by: Mapping[str, int] = field(default_factory=dict)
    """Requests answered with an error, by the name of its status."""
    streams: int = 0
    """Streams of rows open now."""
    started: float = 0.0
    """Unix time at which the shard was made."""
    latency: Distribution = NO_SECONDS
    """Time from reading a request to having written its reply."""
    stages: Mapping[str, Distribution] = field(default_factory=dict)
    """Time by stage of a request: "queue", "locate", "gather", "write"."""
    incarnation: str = ""
    """Incarnation of the server that answered; empty if the counters were read in its process."""
    block_rows: BlockRows = field(default_factory=dict)
    """Requested rows by table and block; empty unless block statistics were requested."""

    @property
    def refused(self) -> int:
        """Requests answered with an error."""
        return sum(self.refused_by.values())


@dataclass(frozen=True)
class Prepared:
    """Where a shard got the blocks of a placement from, counted over all tables."""

    kept: int = 0
    """Blocks that it held before."""
    copied: int = 0
    """Blocks copied from other shards."""
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
