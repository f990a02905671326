"""The processes of a pool's shards, as Ray actors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from cluster.pool.policies.plan import Goal, Whereabouts
from cluster.pool.shard_actor import ShardActor
from cluster.ray_runtime import NAMESPACE, fetch
from memory_service.server.limits import DoorLimits

if TYPE_CHECKING:
    from ray.actor import ActorHandle

MEMORY_ROLE = {"engram/role": "memory"}
"""Label of the nodes that are meant to hold memory. Shards go to these nodes if the cluster has any."""
FOREVER = {"max_restarts": -1, "max_task_retries": -1}
_NODE_LABEL = "ray.io/node-id"  # which Ray gives to every node
_LEAVE_SECONDS = 10.0
_RECOVER_SECONDS = 5.0


class RayFleet:
    """Named shard actors, which Ray restarts. The shards of a detached pool outlive the pool's own process."""

    def __init__(self, pool: str, detached: bool, shard_bytes: int, limits: DoorLimits) -> None:
        """Describe the shards of a pool, without starting any.

        Args:
            pool: name of the pool.
            detached: whether shards outlive the pool's process.
            shard_bytes: memory that a node must have to spare for Ray to put a shard there.
            limits: limits of the doors of every shard.
        """
        self._prefix = f"{pool}/"
        self._detached = detached
        self._shard_bytes = shard_bytes
        self._limits = limits
        self._actors: dict[str, ActorHandle] = {}
        self._asked: dict[str, Any] = {}
        self._saved = 0

    def start(self, shard: str, node: str | None = None) -> None:
        """See Fleet."""
        if shard not in self._actors:
            options = _options(self._detached, self._shard_bytes, self._prefix + shard, node)
            self._actors[shard] = _actor_class(options).remote(shard, self._limits)

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
            del self._actors[shard]  # ended for good from outside: the next start() begins afresh
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

        actor = self._actors.get(shard)
        if actor is not None:
            ray.wait([actor.stop.remote()], timeout=_LEAVE_SECONDS)
            ray.kill(actor)
            self._actors.pop(shard, None)
            self._asked.pop(shard, None)

    def nodes_with_room(self) -> Collection[str]:
        """See Fleet."""
        # As Ray's own libraries do: its public API has the free resources of all nodes together only.
        from ray._private import state

        free = state.available_resources_per_node()
        nodes = [node["NodeID"] for node in _nodes(_labels())]
        return [node for node in nodes if free.get(node, {}).get("memory", 0) >= self._shard_bytes]

    def save_goal(self, goal: Goal) -> None:
        """See Fleet."""
        self._saved += 1
        for actor in list(self._actors.values()):
            actor.remember.remote(self._saved, goal)

    def recover(self) -> tuple[Goal | None, list[Whereabouts]]:
        """See Fleet. Shards of a pool that is not detached end with it."""
        if not self._detached:
            return None, []
        import ray

        names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
        mine = [name for name in names if name.startswith(self._prefix)]
        self._actors = {name.removeprefix(self._prefix): ray.get_actor(name, NAMESPACE) for name in mine}
        goals = [remembered for remembered in self._ask_all("remembered") if remembered is not None]
        self._saved, goal = max(goals, key=lambda numbered: numbered[0], default=(0, None))
        return goal, self._ask_all("whereabouts")

    def _ask_all(self, method: str) -> list[Any]:
        """Call a method of every shard; the answers that arrive soon."""
        import ray

        calls = [getattr(actor, method).remote() for actor in self._actors.values()]
        done, _ = ray.wait(calls, num_returns=len(calls), timeout=_RECOVER_SECONDS) if calls else ([], [])
        answers = []
        for call in done:
            with suppress(ray.exceptions.RayActorError, OSError, ValueError):  # locate() will report it
                answers.append(fetch(call))
        return answers


def _actor_class(options: Mapping[str, Any]) -> Any:
    import ray

    return ray.remote(ShardActor).options(**options)


def _options(detached: bool, memory: int, name: str, node: str | None) -> dict[str, Any]:
    labels = _labels()
    options: dict[str, Any] = {
        "name": name,
        "namespace": NAMESPACE,
        "get_if_exists": True,
        "lifetime": "detached" if detached else None,
        "num_cpus": 0,
        "memory": memory,
        "scheduling_strategy": "SPREAD",
        "label_selector": labels,
        **FOREVER,
    }
    if node is not None:
        # Other nodes only once this one is lost. A node affinity would have Ray crowd the shards on one of those.
        options |= {"label_selector": {**labels, _NODE_LABEL: node}, "fallback_strategy": [{"label_selector": labels}]}
    return options


def _labels() -> dict[str, str]:
    """The labels that a node must have to hold shards."""
    return MEMORY_ROLE if _nodes(MEMORY_ROLE) else {}


def _nodes(labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """The live nodes that have these labels."""
    import ray

    return [node for node in ray.nodes() if node["Alive"] and node.get("Labels", {}).items() >= labels.items()]
