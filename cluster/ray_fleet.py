"""The processes of a pool's shards as Ray actors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.pool_plan import Shape, Whereabouts
from cluster.ray_runtime import NAMESPACE, fetch
from cluster.shard_actor import ShardActor

if TYPE_CHECKING:
    from ray.actor import ActorHandle

MEMORY_ROLE = {"engram/role": "memory"}
"""Label of the nodes that are there to hold memory. Shards go to them where a cluster has any."""
FOREVER = {"max_restarts": -1, "max_task_retries": -1}
_LEAVE_SECONDS = 10.0
_RECALL_SECONDS = 5.0


class RayFleet:
    """Named shard actors, which Ray restarts. Those of a detached pool outlive the pool's own process."""

    def __init__(self, pool: str, detached: bool, shard_bytes: int) -> None:
        """`shard_bytes`: memory that a node must have to spare for Ray to put a shard there."""
        self._prefix = f"{pool}/"
        self._detached = detached
        self._shard_bytes = shard_bytes
        self._actors: dict[str, ActorHandle] = {}
        self._asked: dict[str, Any] = {}
        self._notes = 0

    def start(self, shard: str) -> None:
        """See Fleet."""
        if shard not in self._actors:
            self._actors[shard] = _actor_class(self._detached, self._shard_bytes, self._prefix + shard).remote(shard)

    def locate(self, shard: str) -> Whereabouts | None:
        """See Fleet."""
        import ray

        if shard not in self._actors:
            return None
        if shard not in self._asked:
            self._asked[shard] = self._actors[shard].whereabouts.remote()
        call = self._asked[shard]
        if not ray.wait([call], timeout=0)[0]:
            return None
        del self._asked[shard]
        try:
            return fetch(call)
        except ray.exceptions.RayActorError:
            del self._actors[shard]  # ended for good by somebody else: the next start() is a fresh one
            return None

    def running(self) -> list[str]:
        """See Fleet."""
        return list(self._actors)

    def restart(self, shard: str) -> None:
        """See Fleet."""
        import ray

        ray.kill(self._actors[shard], no_restart=False)

    def stop(self, shard: str) -> None:
        """See Fleet."""
        import ray

        actor = self._actors.pop(shard, None)
        self._asked.pop(shard, None)
        if actor is not None:
            ray.wait([actor.stop.remote()], timeout=_LEAVE_SECONDS)
            ray.kill(actor)

    def note(self, shape: Shape) -> None:
        """Have every shard keep the shape wished for."""
        self._notes += 1
        for actor in self._actors.values():
            actor.note.remote(self._notes, shape)

    def recall(self) -> tuple[Shape, list[Whereabouts]] | None:
        """See Fleet. Shards of a pool that is not detached end with it."""
        if not self._detached:
            return None
        import ray

        names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
        mine = [name for name in names if name.startswith(self._prefix)]
        self._actors = {name.removeprefix(self._prefix): ray.get_actor(name, NAMESPACE) for name in mine}
        noted = [note for note in self._ask_all("noted") if note is not None]
        if not noted:
            return None
        self._notes, shape = max(noted, key=lambda note: note[0])
        return shape, self._ask_all("whereabouts")

    def _ask_all(self, method: str) -> list[Any]:
        """The answers of those that answer soon."""
        import ray

        calls = [getattr(actor, method).remote() for actor in self._actors.values()]
        done, _ = ray.wait(calls, num_returns=len(calls), timeout=_RECALL_SECONDS) if calls else ([], [])
        return [fetch(call) for call in done]


def _actor_class(detached: bool, memory: int, name: str) -> Any:
    import ray

    labels = {"label_selector": MEMORY_ROLE} if _has_memory_nodes() else {}
    return ray.remote(ShardActor).options(
        name=name,
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached" if detached else None,
        num_cpus=0,
        memory=memory,
        scheduling_strategy="SPREAD",
        **FOREVER,
        **labels,
    )


def _has_memory_nodes() -> bool:
    import ray

    nodes = [node.get("Labels", {}) for node in ray.nodes() if node["Alive"]]
    return any(labels.items() >= MEMORY_ROLE.items() for labels in nodes)
