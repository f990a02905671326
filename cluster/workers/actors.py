"""Reasoning workers as Ray actors: started, waited for, ended."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.ray_metrics import RayMetrics
from cluster.ray_runtime import fetch
from cluster.workers.options import ClusterOptions
from cluster.workers.worker import Locate, ReasoningWorker
from reasoning.engine.config import EngineConfig
from reasoning.engine.memory_budget import HOST_SHARE

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_RETRIES = 3


class ReasoningActor(ReasoningWorker):
    """A reasoning worker as a Ray actor, whose memory's metrics are among Ray's."""

    def __init__(self, model_dir: Path, locate: Locate | None, config: EngineConfig, workers: int) -> None:
        import ray

        super().__init__(model_dir, locate, _sharing(config, workers), _threads(workers))
        self._metrics = RayMetrics(self.collect, {"worker": str(ray.get_runtime_context().get_actor_id())})


def _sharing(config: EngineConfig, workers: int) -> EngineConfig:
    """Leave the node's other workers their part of the memory, unless a share is configured or the cache is a GPU's."""
    if config.cache_share is not None or config.device == "cuda":
        return config
    return dataclasses.replace(config, cache_share=HOST_SHARE / _workers_a_node(workers))


def _threads(workers: int) -> int:
    """This node's processors for each of the workers on it.

    Shards on the node are left none: they need so little that a worker with a thread less would lose more.
    """
    import ray

    here = min(_cpus()[ray.get_runtime_context().get_node_id()], os.cpu_count() or 1)
    return max(1, here // _workers_a_node(workers))


def _workers_a_node(workers: int) -> int:
    """Workers on a node if Ray spreads them evenly."""
    return math.ceil(workers / sum(cpus > 0 for cpus in _cpus().values()))


def _cpus() -> dict[str, int]:
    """Processors of every node that lives, by its id."""
    import ray

    return {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]}


def start_workers(model_dir: Path, options: ClusterOptions, locate: Locate | None) -> list[ActorHandle]:
    """Start reasoning actors on the connected Ray, one processor reserved for each, and wait."""
    import ray

    workers, resources = options.workers, ray.cluster_resources()
    for kind, each in (("CPU", 1), ("GPU", options.gpus)):
        if resources.get(kind, 0) < workers * each:
            raise ValueError(
                f"workers: {workers} do not fit on the {resources.get(kind, 0):.0f} {kind}s of this Ray; use fewer"
            )
    placing = {
        "num_cpus": 1,
        "num_gpus": options.gpus,
        "max_restarts": -1,
        "max_task_retries": _RETRIES,
        "scheduling_strategy": "SPREAD",
    }
    actor: Any = ray.remote(ReasoningActor).options(**placing)
    actors = [actor.remote(model_dir.resolve(), locate, options.engine, workers) for _ in range(workers)]
    fetch([actor.ready.remote() for actor in actors])
    return actors


def stop_workers(actors: Sequence[ActorHandle]) -> None:
    """End reasoning actors for good. They keep nothing that a chunk generated anew would not bring back."""
    import ray

    for actor in actors:
        ray.kill(actor)
