"""A memory shard as a Ray actor: a server that starts empty, on the node that Ray chooses."""

from __future__ import annotations

from cluster.pool.policies.plan import Goal, Whereabouts
from cluster.ray_metrics import RayMetrics
from memory_service.protocol.security import ServerSecurity
from memory_service.server.limits import DoorLimits
from memory_service.server.open_files import allow_open_files
from memory_service.server.server import ShardServer
from memory_service.shard.shard import Shard, ShardConfig


class ShardActor:
    """Starts the server of an empty shard in the constructor, as Ray reruns nothing else after a crash.

    The pool fills the shard through its control door.
    """

    def __init__(self, shard: str, limits: DoorLimits) -> None:
        import ray

        self._remembered: tuple[int, Goal] | None = None
        self._server: ShardServer | None = None
        try:
            config = ShardConfig(node=ray.get_runtime_context().get_node_id())
            security = ServerSecurity.from_environment()
            host = ray.util.get_node_ip_address()
            allow_open_files(limits.streams)
            server = ShardServer(Shard(shard, config), host, security=security, limits=limits)
            self._server = server.start()
            self._metrics = RayMetrics(server.shard.collect, {"shard": shard})
        except (OSError, ValueError) as error:
            # Raised here, the pool would see an actor that died, and the reason only in a log.
            self._failure = error

    def whereabouts(self) -> Whereabouts:
        """Return where to reach this shard.

        Raises:
            OSError: the shard could not start.
            ValueError: the shard could not start.
        """
        if self._server is None:
            raise self._failure
        shard = self._server.shard
        return Whereabouts(shard.name, self._server.address, self._server.incarnation, shard.config.node)

    def remember(self, number: int, goal: Goal) -> None:
        """Keep a goal of the pool and its serial number, in case the pool has to start again."""
        self._remembered = number, goal

    def remembered(self) -> tuple[int, Goal] | None:
        """Return the last goal and its number; None before the first."""
        return self._remembered

    def stop(self) -> None:
        """Answer pending requests and stop the server."""
        if self._server is not None:
            self._server.stop()
            self._metrics.close()
