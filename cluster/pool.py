"""The memory pool: starts shards, and gives out a new placement when one has come back elsewhere."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cluster.ray_runtime import NAMESPACE, fetch
from cluster.shard_actor import ShardActor, Whereabouts
from memory_service.errors import ShardUnavailable
from memory_service.placement import Placement, ShardAddress
from memory_service.shard import ShardStats
from memory_service.snapshot import Snapshot
from memory_service.spec import TableSpec

if TYPE_CHECKING:
    from ray.actor import ActorHandle

MEMORY_ROLE = {"engram/role": "memory"}
"""Label of the nodes that are there to hold memory. Shards go to them where a cluster has any."""
_FOREVER = {"max_restarts": -1, "max_task_retries": -1}
_CHECK_SECONDS = 2.0
_START_SECONDS = 600.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PoolDescription:
    """A pool at one moment."""

    placement: Placement
    stats: Mapping[str, ShardStats]
    """Counters by shard, since that shard last started."""


class PoolState:
    """Epochs and addresses of a fixed set of shards as they start, die and come back. Knows nothing of Ray."""

    def __init__(self, shards: Sequence[str], specs: Iterable[TableSpec]) -> None:
        self._blank = Placement.build(1, [ShardAddress(shard, "") for shard in shards], specs)
        self._epoch = 0
        self._active: frozenset[Whereabouts] = frozenset()

    def next_placement(self, seen: Sequence[Whereabouts]) -> Placement | None:
        """Return the placement that shards at these places need, or None if the active one names them already."""
        if frozenset(seen) == self._active:
            return None
        # A new number for every attempt: an activation that failed halfway must not share its epoch with another.
        self._epoch += 1
        addresses = {one.shard: one.address for one in seen}
        shards = tuple(ShardAddress(blank.shard, addresses[blank.shard]) for blank in self._blank.shards)
        return replace(self._blank, epoch=self._epoch, shards=shards)

    def activated(self, seen: Sequence[Whereabouts]) -> None:
        """Take note that every shard serves under the last placement given out."""
        self._active = frozenset(seen)


class MemoryPool:
    """Actor that owns the shard actors of one snapshot.

    Ray restarts a shard that dies, on another port and perhaps another node. The pool notices, by itself within
    seconds or at once when a client calls `refresh`, and activates a new epoch that names the new address.
    """

    def __init__(self, snapshot_uri: str, specs: Sequence[TableSpec], shards: int) -> None:
        names = [f"shard-{index}" for index in range(shards)]
        self._state = PoolState(names, specs)
        self._shards = {name: _start_shard(name, names, snapshot_uri) for name in names}
        self._placement: Placement | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def refresh(self) -> str:
        """Wait until every shard is up and serves under a placement that names them all; return a shard's address.

        Raises:
            SnapshotError: a shard cannot load its blocks.
            ShardUnavailable: a shard does not start.
        """
        with self._lock:
            seen = self._on_all("whereabouts")
            placement = self._state.next_placement(seen)
            if placement is not None:
                self._on_all("activate", placement)
                self._state.activated(seen)
                self._placement = placement
            return seen[0].address

    def describe(self) -> PoolDescription:
        """Report placement and counters."""
        self.refresh()
        assert self._placement is not None, "refresh() activates a placement"
        return PoolDescription(self._placement, dict(zip(self._shards, self._on_all("stats"), strict=True)))

    def shutdown(self) -> None:
        """Let the shards finish what they are answering, and end them."""
        import ray

        self._stopping.set()
        with self._lock:
            self._on_all("stop")
            for shard in self._shards.values():
                ray.kill(shard)

    def _on_all(self, method: str, *args: Any) -> list[Any]:
        import ray

        calls = {name: getattr(shard, method).remote(*args) for name, shard in self._shards.items()}
        _, late = ray.wait(list(calls.values()), num_returns=len(calls), timeout=_START_SECONDS)
        for name, call in calls.items():
            if call in late:
                raise ShardUnavailable(
                    f"{name} did not start within {_START_SECONDS:.0f} s; does the cluster have room for it?",
                    shard=name,
                )
        return fetch(list(calls.values()))

    def _watch(self) -> None:
        while not self._stopping.wait(_CHECK_SECONDS):
            try:
                self.refresh()
            except Exception as error:  # whoever asks for the memory gets it too; the next round tries again
                _log.warning("memory pool: %s", error)


def start_pool(snapshot_uri: str, shards: int, name: str, detached: bool = False) -> ActorHandle:
    """Start `shards` shards of a snapshot on the connected Ray, or join the pool of that name, and wait for it.

    A detached pool outlives this process, until `stop_pool`.

    Raises:
        SnapshotError: the snapshot is missing or damaged.
        ShardUnavailable: a shard does not start.
    """
    import ray

    snapshot = Snapshot.open(snapshot_uri)
    identity = {"name": name, "namespace": NAMESPACE, "get_if_exists": True}
    lifetime = "detached" if detached else None
    actor: Any = ray.remote(MemoryPool).options(num_cpus=0, lifetime=lifetime, **identity, **_FOREVER)
    pool = actor.remote(snapshot.uri, list(snapshot.specs.values()), shards)
    fetch(pool.refresh.remote())
    return pool


def pool_address(name: str) -> str:
    """Wait until the pool of that name serves; return the address of one of its shards."""
    import ray

    return fetch(ray.get_actor(name, NAMESPACE).refresh.remote())


def stop_pool(pool: ActorHandle) -> None:
    """End a pool and its shards."""
    import ray

    fetch(pool.shutdown.remote())
    ray.kill(pool)


def _start_shard(name: str, names: Sequence[str], snapshot_uri: str) -> ActorHandle:
    import ray

    labels = {"label_selector": MEMORY_ROLE} if _has_memory_nodes() else {}
    actor: Any = ray.remote(ShardActor).options(num_cpus=0, scheduling_strategy="SPREAD", **_FOREVER, **labels)
    return actor.remote(name, names, snapshot_uri)


def _has_memory_nodes() -> bool:
    import ray

    nodes = [node.get("Labels", {}) for node in ray.nodes() if node["Alive"]]
    return any(labels.items() >= MEMORY_ROLE.items() for labels in nodes)
