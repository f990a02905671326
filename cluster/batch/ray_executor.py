"""Run a job on Ray: memory shards and reasoning workers as actors, for as long as the job lasts."""

from __future__ import annotations

import itertools
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.batch.executor import Executor, InProcessExecutor
from cluster.pool.named_pools import pool_address, serve_pool, stop_pool
from cluster.pool.plan import Shape
from cluster.ray_runtime import fetch, ray_session
from cluster.workers.actors import start_workers, stop_workers
from cluster.workers.options import ClusterOptions
from cluster.workers.worker import Locate, ReasoningWorker
from reasoning.architectures.base import ModelConfig
from reasoning.architectures.registry import read_model_config
from reasoning.engine.config import EngineStats
from reasoning.engine.trace import Trace
from reasoning.engram.memory_config import MEMORY_DIR
from reasoning.request import Request, Result

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_CHUNKS_A_WORKER = 2  # one being generated, one waiting, so that no worker waits for the driver


@contextmanager
def open_executor(model_dir: Path, options: ClusterOptions, trace: Trace | None = None) -> Iterator[Executor]:
    """Bring up what generates with a model, and take it down on leaving.

    `trace` is told what an engine in this process does; engines on Ray have none.

    Raises:
        ValueError: the model or the Ray address cannot be used.
        MemoryServiceError: the memory cannot be loaded, reached, or is not the model's.
    """
    if options.workers == 0:
        worker = ReasoningWorker(model_dir, _fixed(options.memory), options.engine_config(), trace=trace)
        worker.ready()
        yield InProcessExecutor(worker)
        return
    config = read_model_config(model_dir)
    with ray_session(options.address, options.workers), _memory(model_dir, config, options) as locate:
        # No try: after a failure, leaving Ray ends the actors, and sooner than stopping them in the midst of work.
        actors = start_workers(model_dir, options, locate)
        yield RayExecutor(actors)
        stop_workers(actors)


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


@contextmanager
def _memory(model_dir: Path, config: ModelConfig, options: ClusterOptions) -> Iterator[Locate | None]:
    if options.memory is not None:
        yield _fixed(options.memory)
    elif config.engram is None:
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
