"""What tests of a real Ray share."""

from __future__ import annotations

import os
import time

from cluster.ray_runtime import NAMESPACE, fetch


def process_of(actor):
    return fetch(actor.__ray_call__.remote(lambda _: os.getpid()))


def shard_processes(pool):
    """Process id by shard name, of the pool of that name."""
    import ray

    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    mine = [name for name in names if name.startswith(f"{pool}/")]
    return {name.removeprefix(f"{pool}/"): process_of(ray.get_actor(name, NAMESPACE)) for name in mine}


def wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened for a minute"
        time.sleep(0.05)
