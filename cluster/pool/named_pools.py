"""Start, find, wait for and end the memory pools of the connected Ray cluster."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from cluster.pool.config import PoolConfig
from cluster.pool.policies.autoscale import Autoscaler
from cluster.pool.policies.plan import PoolPlan, Shape
from cluster.pool.pool import MemoryPool
from cluster.pool.ray_fleet import FOREVER, RayFleet
from cluster.ray_runtime import NAMESPACE, fetch
from memory_service.errors import ShardUnavailable
from memory_service.snapshots.origin import Origin
from memory_service.snapshots.snapshot import Snapshot, load_newest

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_CALLS_AT_ONCE = 16  # so that address() is answered during a long scale()
_PATIENCE_S = 600.0
_PAUSE_S = 0.1
_FREE_S = 10.0


def start_pool(
    snapshot_uri: str, shape: Shape, name: str, detached: bool = False, config: PoolConfig | None = None
) -> ActorHandle:
    """Start the shards of a snapshot, or join the pool of that name; `wait_for_pool` waits until it serves.

    Args:
        snapshot_uri: the snapshot, which every node must be able to read.
        shape: how many shards and replicas.
        name: name of the pool on the cluster.
        detached: whether the pool outlives this process, until `stop_pool`.
        config: intervals and timeouts of the pool.

    Raises:
        SnapshotError: there is no snapshot.
        ValueError: the tables do not fit on as many shards as autoscaling allows, or `shape` names an unknown table.
    """
    import ray

    config = config or PoolConfig()
    snapshot = Snapshot.open(snapshot_uri)
    specs = tuple(snapshot.specs.values())
    PoolPlan(specs, shape)  # an error in the actor would be the end of it
    if config.autoscale is not None:
        Autoscaler(config.autoscale, shape.bytes_of(specs))
    share = math.ceil(shape.bytes_of(specs) / shape.shards)
    actor: Any = ray.remote(MemoryPool).options(
        name=name,
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached" if detached else None,
        num_cpus=0,
        max_concurrency=_CALLS_AT_ONCE,
        **FOREVER,
    )
    return actor.remote(RayFleet(name, detached, share, config.limits), Origin.of(snapshot), shape, config)


def serve_pool(
    snapshot_uri: str, shape: Shape, name: str, detached: bool = False, config: PoolConfig | None = None
) -> tuple[ActorHandle, str]:
    """Start a pool under an unused name, and wait until it serves; return the pool and the address of a shard.

    If a block of the newest generation turns out damaged, the last good generation is served, with a warning, unless
    the URI names a generation. Nothing stays behind after an error.

    Args:
        snapshot_uri: see `start_pool`, as for the other arguments.

    Raises:
        SnapshotError: there is no snapshot, or it is damaged.
        ShardUnavailable: a shard does not start.
        ValueError: see `start_pool`.
    """

    def serve(snapshot: Snapshot) -> tuple[ActorHandle, str]:
        # A pool that Ray restarts reads the generation it was started with, so another generation takes a new pool.
        pool = start_pool(snapshot.uri, shape, name, detached, config)
        try:
            return pool, wait_for_pool(pool)
        except BaseException:
            stop_pool(pool)
            _wait_until_free(name)
            raise

    return load_newest(snapshot_uri, serve)


def _wait_until_free(name: str) -> None:
    deadline = time.monotonic() + _FREE_S
    while pool_exists(name) and time.monotonic() < deadline:
        time.sleep(_PAUSE_S)


def pool_exists(name: str) -> bool:
    """Whether the cluster has a pool of this name."""
    import ray

    return {"name": name, "namespace": NAMESPACE} in ray.util.list_named_actors(all_namespaces=True)


def find_pool(name: str) -> ActorHandle:
    """Return the pool of this name.

    Raises:
        ValueError: the cluster has no pool of this name.
    """
    import ray

    if not pool_exists(name):
        raise ValueError(f"name: no memory pool {name!r} on this cluster; start it, or give another name or cluster")
    return ray.get_actor(name, NAMESPACE)


def pool_address(name: str) -> str:
    """Wait until the pool of this name serves, as `wait_for_pool` does; return host:port of one of its shards."""
    return wait_for_pool(find_pool(name))


def wait_for_pool(pool: ActorHandle) -> str:
    """Wait until every block of a pool is on a shard that answers; return host:port of one of its shards.

    Raises:
        SnapshotError: the snapshot is damaged.
        ShardUnavailable: a shard does not start.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while (address := fetch(pool.address.remote())) is None:
        if time.monotonic() > deadline:
            raise ShardUnavailable(
                f"the memory pool does not serve every block after {_PATIENCE_S:.0f} s; does the cluster have room?"
            )
        time.sleep(_PAUSE_S)
    return address


def stop_pool(pool: ActorHandle) -> None:
    """End a pool and its shards."""
    import ray

    fetch(pool.shutdown.remote())
    ray.kill(pool)
