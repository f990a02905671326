"""Start what a job runs on: an engine in this process, or memory shards and workers on Ray for the time of the job."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from cluster.batch.executors.executor import Executor, InProcessExecutor
from cluster.batch.executors.ray_executor import RayExecutor
from cluster.pool.named_pools import pool_address, serve_pool, stop_pool
from cluster.pool.policies.plan import Shape
from cluster.ray_runtime import ray_session
from cluster.workers.actors import start_workers, stop_workers
from cluster.workers.options import ClusterOptions
from cluster.workers.worker import Locate, ReasoningWorker
from reasoning.architectures.base import ModelConfig
from reasoning.architectures.registry import read_model_config
from reasoning.engine.trace import Trace
from reasoning.engram.memory_config import MEMORY_DIR


@contextmanager
def open_executor(model_dir: Path, options: ClusterOptions, trace: Trace | None = None) -> Iterator[Executor]:
    """Start an executor for a model, and stop what was started when the block ends.

    Args:
        model_dir: a model directory.
        options: where it runs.
        trace: records the steps of an engine in this process; engines on Ray have no trace.

    Raises:
        ValueError: the model or the Ray address cannot be used.
        MemoryServiceError: the memory cannot be loaded, reached, or is not the model's.
    """
    config = read_model_config(model_dir)
    if options.workers == 0:
        worker = ReasoningWorker(model_dir, _fixed(options.memory), options.engine, trace=trace)
        worker.ready()
        yield InProcessExecutor(worker)
        return
    with ray_session(options.address, options.workers), _memory(model_dir, config, options) as locate:
        # No try: after a failure, leaving Ray ends the actors sooner than stopping them in the middle of work would.
        actors = start_workers(model_dir, options, locate)
        yield RayExecutor(actors)
        stop_workers(actors)


@contextmanager
def _memory(model_dir: Path, config: ModelConfig, options: ClusterOptions) -> Iterator[Locate | None]:
    if options.memory is not None:
        yield _fixed(options.memory)
    elif config.engram is None:
        yield None
    else:
        # Workers get the name of the pool: a handle among their arguments would not survive a restart.
        name = f"memory-{uuid.uuid4().hex[:8]}"
        shape = Shape(options.shards, options.replicas)
        pool, _ = serve_pool(str(model_dir.resolve() / MEMORY_DIR), shape, name)
        yield partial(pool_address, name)
        stop_pool(pool)


def _fixed(address: str | None) -> Locate | None:
    return None if address is None else partial(str, address)
