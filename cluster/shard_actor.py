"""A memory shard as a Ray actor: a server started where Ray puts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cluster.ray_metrics import RayMetrics
from memory_service.errors import MemoryServiceError
from memory_service.placement import Placement, ShardAddress
from memory_service.security import ServerSecurity
from memory_service.server import ShardServer
from memory_service.shard import Shard
from memory_service.shard_counters import collect_shard
from memory_service.snapshot import Snapshot

if TYPE_CHECKING:
    from memory_service.shard import ShardStats


@dataclass(frozen=True)
class Whereabouts:
    """Where a shard can be reached, and which of its lives this is."""

    shard: str
    address: str
    incarnation: str


class ShardActor:
    """Loads its blocks and serves them, all in the constructor: Ray reruns nothing else after a crash.

    Which blocks are its own follows from the shards' names alone, so it needs nobody's help to come back. It serves
    lookups once a placement is activated.
    """

    def __init__(self, shard: str, shards: Sequence[str], snapshot_uri: str) -> None:
        self._server: ShardServer | None = None
        try:
            server = self._server = _serve(shard, shards, snapshot_uri)
            self._metrics = RayMetrics(partial(collect_shard, server.shard), {"shard": shard})
        except (MemoryServiceError, OSError, ValueError) as error:
            # Raised here it would reach the pool as the death of an actor, its reason buried in a log.
            self._failure = error

    def whereabouts(self) -> Whereabouts:
        """Say where to reach this shard; raises what kept it from starting."""
        server = self._started()
        return Whereabouts(server.shard.name, server.address, server.incarnation)

    def activate(self, placement: Placement) -> None:
        """Serve under a placement."""
        self._started().shard.activate(placement)

    def stats(self) -> ShardStats:
        """Counters since the shard started."""
        return self._started().shard.stats()

    def stop(self) -> None:
        """Finish what is being answered and close both doors."""
        if self._server is not None:
            self._server.stop()
            self._metrics.close()

    def _started(self) -> ShardServer:
        if self._server is None:
            raise self._failure
        return self._server


def _serve(shard: str, shards: Sequence[str], snapshot_uri: str) -> ShardServer:
    import ray

    served = Shard(shard)
    specs = Snapshot.open(snapshot_uri).specs.values()
    placement = Placement.build(1, [ShardAddress(name, "") for name in shards], specs)
    served.prepare(placement, snapshot_uri=snapshot_uri)
    security = ServerSecurity.from_environment()
    return ShardServer(served, host=ray.util.get_node_ip_address(), security=security).start()
