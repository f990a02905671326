"""What a shard reports: its counters, and what a preparation brought."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ShardStats:
    """Counters of a shard since it was made."""

    requests: int = 0
    """Lookups answered with rows."""
    refused: int = 0
    """Lookups answered with an error."""
    expired: int = 0
    """Lookups dropped because their time was up before their turn came."""
    rows: int = 0
    bytes: int = 0
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    """Time by stage: "locate", "gather"."""


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

    def __add__(self, other: "Prepared") -> "Prepared":
        return Prepared(
            self.kept + other.kept,
            self.copied + other.copied,
            self.loaded + other.loaded,
            self.bytes + other.bytes,
        )
