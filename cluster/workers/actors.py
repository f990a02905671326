"""Reasoning workers as Ray actors: started, waited for, ended."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.ray_metrics import RayMetrics
from cluster.ray_runtime import fetch
from cluster.workers.options import ClusterOptions
from cluster.workers.worker import Locate, ReasoningWorker
from reasoning.engine import EngineConfig

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_CHUNK_RETRIES = 3  # after the death of a worker; a chunk that ends every worker it meets must not go on for ever


class ReasoningActor(ReasoningWorker):
    """A reasoning worker as a Ray actor, whose memory's metrics are among Ray's."""

    def __init__(self, model_dir: Path, locate: Locate | None, config: EngineConfig, workers: int) -> None:
        import ray

        super().__init__(model_dir, locate, config, _threads(workers))
        self._metrics = RayMetrics(self.collect, {"worker": str(ray.get_runtime_context().get_actor_id())})


def _threads(workers: int) -> int:
    """This node's processors for each of the workers on it, if Ray spreads them evenly.

    Shards on the node are left none: they need so little that a worker with a thread less would lose more.
    """
    import ray

    nodes = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]}
    here = min(nodes[ray.get_runtime_context().get_node_id()], os.cpu_count() or 1)
    return max(1, here // math.ceil(workers / sum(cpus > 0 for cpus in nodes.values())))


def start_workers(model_dir: Path, options: ClusterOptions, locate: Locate | None) -> list[ActorHandle]:
    """Start reasoning actors on the connected Ray, one processor reserved for each, and wait."""
    import ray

    workers, resources = options.workers, ray.cluster_resources()
    for kind, each in (("CPU", 1), ("GPU", options.gpus)):
        if resources.get(kind, 0) < workers * each:
            raise ValueError(
                f"--workers: {workers} do not fit on the {resources.get(kind, 0):.0f} {kind}s of this Ray; use fewer"
            )
    placing = {
        "num_cpus": 1,
        "num_gpus": options.gpus,
        "max_restarts": -1,
        "max_task_retries": _CHUNK_RETRIES,
        "scheduling_strategy": "SPREAD",
    }
    actor: Any = ray.remote(ReasoningActor).options(**placing)
    actors = [actor.remote(model_dir.resolve(), locate, options.engine_config(), workers) for _ in range(workers)]
    fetch([actor.ready.remote() for actor in actors])
    return actors


def stop_workers(actors: Sequence[ActorHandle]) -> None:
    """End reasoning actors for good. They keep nothing that a chunk generated anew would not bring back."""
    import ray

    for actor in actors:
        ray.kill(actor)
