"""Which shards of a pool answer, since when others have not, and what the shards that answer have counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cluster.pool.fleet import Fleet
from cluster.pool.policies.plan import Whereabouts
from memory_service.control.client import ControlClient, ShardUnresponsive
from memory_service.errors import MemoryServiceError
from memory_service.protocol.reports import ShardStats

_MOST_THREADS = 256


@dataclass(frozen=True)
class Sighting:
    """What one round of health checks found."""

    now: float
    """Seconds of the watch's clock."""
    up: Mapping[Whereabouts, ShardStats]
    """Counters of the shards that answered."""
    missing_since: Mapping[str, float]
    """Time since which each other shard has not answered."""
    silent_since: Mapping[str, float]
    """Time since which shards that accept a connection have not answered."""
    failures: tuple[Exception, ...] = ()
    """Errors that keep shards from starting."""

    def missing(self, seconds: float) -> list[str]:
        """The shards that have not answered for so many seconds."""
        return [shard for shard, since in self.missing_since.items() if self.now - since >= seconds]

    def silent(self, seconds: float) -> list[str]:
        """The shards that have accepted connections without answering for so many seconds."""
        return [shard for shard, since in self.silent_since.items() if self.now - since >= seconds]


class ShardWatch:
    """Checks the health of the shards of a fleet, all at once, one round at a time."""

    def __init__(self, fleet: Fleet, probe_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._fleet = fleet
        self._probe_s = probe_s
        self._clock = clock
        self._threads = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="shard-watch")
        self._controls: dict[str, tuple[Whereabouts, ControlClient]] = {}
        self._missing_since: dict[str, float] = {}
        self._silent_since: dict[str, float] = {}

    def look(self, shards: Collection[str], blocks: bool = False) -> Sighting:
        """Check these shards at once, within the timeout of one check; forget all others.

        Args:
            shards: names of shards.
            blocks: whether to read the counters of each block as well.
        """
        for shard in self._controls.keys() - set(shards):
            self.forget(shard)
        failures = self._locate(shards)
        known = list(self._controls.values())
        outcomes = list(self._threads.map(lambda pair: self._probe(pair[1], blocks), known))
        now = self._clock()
        judged = [(where, self._judge(where, found, now)) for (where, _), found in zip(known, outcomes, strict=True)]
        up = {where: stats for where, stats in judged if stats is not None}
        answered = {where.shard for where in up}
        self._missing_since = {name: self._missing_since.get(name, now) for name in shards if name not in answered}
        return Sighting(now, up, self._missing_since, dict(self._silent_since), failures)

    def forget(self, shard: str) -> None:
        """Close the connection to a shard; the next round locates it again."""
        self._silent_since.pop(shard, None)
        if shard in self._controls:
            _, control = self._controls.pop(shard)
            control.close()

    def close(self) -> None:
        """End threads and connections."""
        self._threads.shutdown(wait=True)
        for shard in list(self._controls):
            self.forget(shard)

    def _locate(self, shards: Collection[str]) -> tuple[Exception, ...]:
        """Find the addresses of shards that are not connected; return the errors that keep shards from starting."""
        failures: list[Exception] = []
        for shard in set(shards) - self._controls.keys():
            try:
                where = self._fleet.locate(shard)
                if where is not None:
                    self._controls[shard] = where, ControlClient(where.address, shard)
            except (OSError, ValueError) as failure:
                failures.append(failure)
        return tuple(failures)

    def _probe(self, control: ControlClient, blocks: bool) -> ShardStats | MemoryServiceError:
        try:
            return control.stats(self._probe_s, blocks)
        except MemoryServiceError as error:
            return error

    def _judge(self, where: Whereabouts, found: ShardStats | MemoryServiceError, now: float) -> ShardStats | None:
        """Record whether a shard answered; return its counters if the answer came from this process of it."""
        if isinstance(found, ShardUnresponsive):
            self._silent_since.setdefault(where.shard, now - self._probe_s)
            return None
        if isinstance(found, MemoryServiceError) or found.incarnation != where.incarnation:
            self.forget(where.shard)  # it has ended, and another process may have its port
            return None
        self._silent_since.pop(where.shard, None)
        return found
