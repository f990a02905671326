"""Reasoning workers as Ray actors: how they are started and stopped."""

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
"""Times that Ray retries a call after the death of a worker. Chunks are retried by the executor instead."""
KEEPS_DYING = "a worker keeps dying while it loads the model; look in Ray's logs for the cause (memory?)"


class ReasoningActor(ReasoningWorker):
    """A reasoning worker as a Ray actor, which exports the metrics of its memory client to Ray."""

    def __init__(self, model_dir: Path, locate: Locate | None, config: EngineConfig, workers: int) -> None:
        import ray

        super().__init__(model_dir, locate, _sharing(config, workers), _threads(workers))
        self._metrics = RayMetrics(self.collect, {"worker": str(ray.get_runtime_context().get_actor_id())})


def _sharing(config: EngineConfig, workers: int) -> EngineConfig:
    """Divide the host memory among the workers of a node, unless a share is configured or the cache is on a GPU."""
    if config.cache_share is not None or config.device == "cuda":
        return config
    return dataclasses.replace(config, cache_share=HOST_SHARE / _workers_a_node(workers))


def _threads(workers: int) -> int:
    """Number of threads of a worker: the node's processors divided by the workers on it.

    No processor is reserved for shards on the node: they need less than a worker would lose with a thread fewer.
    """
    import ray

    here = min(_cpus()[ray.get_runtime_context().get_node_id()], os.cpu_count() or 1)
    return max(1, here // _workers_a_node(workers))


def _workers_a_node(workers: int) -> int:
    """Number of workers on a node if Ray spreads them evenly."""
    return math.ceil(workers / sum(cpus > 0 for cpus in _cpus().values()))


def _cpus() -> dict[str, int]:
    """Number of processors of every live node, by node id."""
    import ray

    return {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]}


def start_workers(model_dir: Path, options: ClusterOptions, locate: Locate | None) -> list[ActorHandle]:
    """Start reasoning actors on the connected Ray, with a processor reserved for each, and wait until they are ready.

    Raises:
        ValueError: the cluster has too few processors or GPUs, or the model cannot be loaded.
        MemoryServiceError: the memory cannot be loaded or reached, or is not the model's.
    """
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
    try:
        fetch([actor.ready.remote() for actor in actors])
    except ray.exceptions.RayActorError as error:
        raise ValueError(f"workers: {KEEPS_DYING}") from error
    return actors


def stop_workers(actors: Sequence[ActorHandle]) -> None:
    """Kill reasoning actors for good. They hold no state that is worth saving."""
    import ray

    for actor in actors:
        ray.kill(actor)
