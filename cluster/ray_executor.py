"""Run a job on Ray: memory shards and reasoning workers as actors, for as long as the job lasts."""

from __future__ import annotations

import itertools
import math
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.executor import Executor, InProcessExecutor
from cluster.pool_plan import Shape
from cluster.pools import pool_address, serve_pool, stop_pool
from cluster.ray_metrics import RayMetrics
from cluster.ray_runtime import fetch, ray_session
from cluster.worker import Locate, ReasoningWorker
from memory_service import ClientConfig
from reasoning.config import ModelConfig
from reasoning.engine_config import EngineConfig, EngineStats
from reasoning.loading import MEMORY_DIR
from reasoning.request import Request, Result
from reasoning.trace import Trace

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_CHUNK_RETRIES = 3  # after the death of a worker; a chunk that ends every worker it meets must not go on for ever
_CHUNKS_A_WORKER = 2  # one being generated, one waiting, so that no worker waits for the driver


@dataclass(frozen=True)
class ClusterOptions:
    """Where a job runs."""

    workers: int = 1
    """Reasoning actors; 0 generates in this process, without Ray."""
    shards: int = 2
    """Memory shards to start, unless `memory` names one or `workers` is 0."""
    address: str | None = None
    """Ray cluster to join; None starts a local Ray."""
    memory: str | None = None
    """host:port of a shard that is running already."""
    batch_size: int = 16
    """Sequences that a worker runs together, and lines that it is given at a time."""
    replicas: int = 1
    """Shards that hold each block of the memory."""
    client: ClientConfig = field(default_factory=ClientConfig)
    """How workers ask for rows."""
    device: str = "auto"
    """Where models run, as `EngineConfig.device` has it; "cuda" reserves a GPU of Ray for each worker."""

    @property
    def gpus(self) -> int:
        """GPUs to reserve for a worker."""
        return int(self.device == "cuda")

    def engine_config(self) -> EngineConfig:
        """What every worker's engine is told."""
        return EngineConfig(max_batch=self.batch_size, device=self.device, client=self.client)


@contextmanager
def open_executor(model_dir: Path, options: ClusterOptions, trace: Trace | None = None) -> Iterator[Executor]:
    """Bring up what generates with a model, and take it down on leaving.

    `trace` is told what an engine in this process does; engines on Ray have none.

    Raises:
        ValueError: the model or the Ray address cannot be used.
        MemoryServiceError: the memory cannot be loaded, reached, or is not the model's.
    """
    config = ModelConfig.from_dir(model_dir)
    if options.workers == 0:
        worker = ReasoningWorker(model_dir, _fixed(options.memory), options.engine_config(), trace=trace)
        worker.ready()
        yield InProcessExecutor(worker)
        return
    with ray_session(options.address, options.workers), _memory(model_dir, config, options) as locate:
        # No try: after a failure, leaving Ray ends the actors, and sooner than stopping them in the midst of work.
        actors = start_workers(model_dir, options, locate)
        yield RayExecutor(actors)
        stop_workers(actors)


class ReasoningActor(ReasoningWorker):
    """A reasoning worker as a Ray actor, whose memory's metrics are among Ray's."""

    def __init__(self, model_dir: Path, locate: Locate | None, config: EngineConfig, workers: int) -> None:
        import ray

        super().__init__(model_dir, locate, config, _threads(workers))
        self._metrics = RayMetrics(self.collect, {"worker": str(ray.get_runtime_context().get_actor_id())})


class RayExecutor:
    """Spreads chunks over reasoning actors, the least loaded first."""

    def __init__(self, actors: Sequence[ActorHandle]) -> None:
        self.actors = actors
        self.workers = len(actors)
        self._running: dict[Any, tuple[int, int, Sequence[Request]]] = {}
        self._load: Counter[int] = Counter()

    def has_room(self) -> bool:
        """Whether some worker has fewer than two chunks."""
        return len(self._running) < _CHUNKS_A_WORKER * self.workers

    def submit(self, chunk: int, requests: Sequence[Request]) -> None:
        """Send a chunk to the worker with the fewest."""
        worker = min(range(self.workers), key=self._load.__getitem__)
        self._running[self.actors[worker].generate.remote(requests)] = (chunk, worker, requests)
        self._load[worker] += 1

    def next_done(self) -> tuple[int, list[Result]]:
        """Wait for a chunk; raises what stopped its worker, ValueError if the chunk itself seems to end workers."""
        import ray

        [done], _ = ray.wait(list(self._running), num_returns=1)
        chunk, worker, requests = self._running.pop(done)
        self._load[worker] -= 1
        try:
            return chunk, fetch(done)
        except ray.exceptions.RayActorError as error:
            lines = f"{requests[0].id} to {requests[-1].id}"
            raise ValueError(
                f"--input: reasoning workers keep dying on lines {lines}; look for what ended them (memory?) in Ray's "
                "logs, then run the command again to continue"
            ) from error

    def stats(self) -> list[EngineStats]:
        """Counters of every engine, since its worker last started."""
        return list(itertools.chain.from_iterable(fetch([actor.stats.remote() for actor in self.actors])))


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


@contextmanager
def _memory(model_dir: Path, config: ModelConfig, options: ClusterOptions) -> Iterator[Locate | None]:
    if options.memory is not None:
        yield _fixed(options.memory)
    elif not config.engram_layer_ids:
        yield None
    else:
        # Workers get its name: a handle among their arguments would not survive a restart.
        name = f"memory-{uuid.uuid4().hex[:8]}"
        shape = Shape(options.shards, options.replicas)
        pool, _ = serve_pool(str(model_dir.resolve() / MEMORY_DIR), shape, name)
        yield partial(pool_address, name)
        stop_pool(pool)


def _fixed(address: str | None) -> Locate | None:
    return None if address is None else partial(str, address)
