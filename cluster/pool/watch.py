"""Which shards of a pool answer, for how long the others have not, and what those that do have counted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from cluster.pool.plan import Shape, Whereabouts
from memory_service.control.client import ControlClient, ShardUnresponsive
from memory_service.errors import MemoryServiceError
from memory_service.protocol.reports import ShardStats

_THREADS = 16

_log = logging.getLogger(__name__)


class Fleet(Protocol):
    """The processes of a pool's shards, and what they keep for a pool that has to start again."""

    def start(self, shard: str, node: str | None = None) -> None:
        """Start a shard's process, empty, unless it runs: on this node if it has room, else or by default on any."""

    def running(self) -> list[str]:
        """The shards that were started and not stopped."""

    def locate(self, shard: str) -> Whereabouts | None:
        """Where a shard that was started can be reached; None, at once, while it is starting or coming back.

        OSError or ValueError, whatever keeps it from opening its doors.
        """

    def restart(self, shard: str) -> None:
        """End a shard's process, which comes back by itself, empty and elsewhere."""

    def stop(self, shard: str) -> None:
        """End a shard for good, after what it is answering."""

    def roomy(self) -> Collection[str]:
        """The nodes that one more shard may be started on, now."""

    def note(self, shape: Shape) -> None:
        """Have every shard keep the shape wished for."""

    def recall(self) -> tuple[Shape, list[Whereabouts]] | None:
        """Find the shards that an earlier life of the pool started: the shape noted last, and where they are."""


class ShardWatch:
    """Looks at the shards of a fleet, one round at a time. A shard that hangs is restarted."""

    def __init__(
        self, fleet: Fleet, probe_s: float, unresponsive_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fleet = fleet
        self._probe_s = probe_s
        self._unresponsive_s = unresponsive_s
        self._clock = clock
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="shard-watch")
        self._controls: dict[Whereabouts, ControlClient] = {}
        self._where: dict[str, Whereabouts] = {}
        self._missing_since: dict[str, float] = {}
        self._silent_since: dict[str, float] = {}
        self.up: Mapping[Whereabouts, ShardStats] = {}
        """The shards that answered in the last round, and their counters."""

    def look(self, shards: Collection[str]) -> None:
        """Ask every one of these shards at once; those not named are forgotten. Raises what kept one from starting."""
        for shard in self._where.keys() - set(shards):
            self._forget(shard)
        now = self._clock()
        found = list(self._threads.map(self._look_at, shards))
        up = dict(one for one in found if isinstance(one, tuple))
        seen = {where.shard for where in up}
        since = {shard: self._missing_since.get(shard, now) for shard in shards if shard not in seen}
        self._missing_since, self.up = since, up
        self._restart_silent(now)
        for failure in found:
            if isinstance(failure, Exception):
                raise failure

    def missing(self, seconds: float) -> list[str]:
        """The shards that have not answered for so long."""
        now = self._clock()
        return [shard for shard, since in self._missing_since.items() if now - since >= seconds]

    def close(self) -> None:
        """End threads and connections."""
        self._threads.shutdown(wait=True)
        for shard in list(self._where):
            self._forget(shard)

    def _look_at(self, shard: str) -> tuple[Whereabouts, ShardStats] | Exception | None:
        try:
            where = self._where.get(shard) or self._fleet.locate(shard)
        except (OSError, ValueError) as failure:
            return failure
        if where is None:
            return None
        try:
            stats = self._control(where).stats(self._probe_s)
        except ShardUnresponsive:
            self._silent_since.setdefault(shard, self._clock() - self._probe_s)
            return None
        except MemoryServiceError:
            self._forget(shard)
            return None
        self._silent_since.pop(shard, None)
        if stats.incarnation != where.incarnation:  # its port went to another process
            self._forget(shard)
            return None
        return where, stats

    def _control(self, where: Whereabouts) -> ControlClient:
        self._where[where.shard] = where
        if where not in self._controls:
            self._controls[where] = ControlClient(where.address, where.shard)
        return self._controls[where]

    def _restart_silent(self, now: float) -> None:
        for shard, since in list(self._silent_since.items()):
            if now - since >= self._unresponsive_s:
                _log.warning("%s has not answered for %.0f s: restarting it", shard, now - since)
                self._forget(shard)
                self._fleet.restart(shard)

    def _forget(self, shard: str) -> None:
        self._silent_since.pop(shard, None)
        where = self._where.pop(shard, None)
        control = self._controls.pop(where, None) if where else None
        if control is not None:
            control.close()
