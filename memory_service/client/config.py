"""Configuration of a memory client."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClientConfig:
    """Timeouts, hedging and caching of a memory client.

    Raises:
        ValueError: a value that must be above 0 is not.
    """

    lookup_timeout_s: float = 5.0
    """Seconds until a lookup fails, where the call gives no timeout of its own."""
    connect_timeout_s: float = 5.0
    """Seconds for a shard to describe itself, when the client connects and when a stream opens."""
    request_rows: int = 1 << 17
    """Most rows in one request; a lookup of more rows is sent as several requests."""
    stall_s: float = 5.0
    """Seconds after which a stream that is silent while an answer is due is given up and opened again."""
    down_s: float = 1.0
    """Seconds for which a shard that failed is avoided where there are other replicas; doubled with each failure."""
    cache_bytes: int = 0
    """Bytes of hot rows that the client keeps of each table, in front of the network; 0 disables the cache."""
    map_local: bool = False
    """Read rows of shards on the same machine directly from their shared memory where possible."""
    hedge_least_s: float = 0.005
    """Least seconds before a request is hedged; otherwise it is hedged after 3 times the usual time of an answer."""
    hedge_share: float = 0.05
    """Hedging budget: largest share of the requests that may be sent to a second replica because the first is slow."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0 or (value == 0 and name not in ("cache_bytes", "map_local")):
                raise ValueError(f"{name}: {value} is too low; use a number above 0")
