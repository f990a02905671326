"""What Ray Train runs on every worker: one attempt, from the last checkpoint on."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from cluster.ray_runtime import fetch
from cluster.training.reading import ray_reader
from memory_service import ClientConfig, InvalidRequest, MemoryClient, MemoryServiceError
from memory_service.training.memory import LearningMemory
from memory_service.training.remote import RemoteLearningMemory
from reasoning.runs.checkpoints import Checkpoint, CheckpointError, Checkpoints, Position
from reasoning.runs.config import RunConfig
from reasoning.runs.parts import Parts
from reasoning.runs.progress import Records
from reasoning.runs.session import Events, Session
from reasoning.training.parallel import Workers
from reasoning.training.rows import FrozenTables
from reasoning.training.trainer import TrainingError

_LASTING = (TrainingError, InvalidRequest, CheckpointError)
"""Errors that would come again if the attempt were repeated."""


def train_worker(config: dict[str, Any]) -> None:
    """Take part in an attempt; `config` holds the run and the actor of its memory.

    An error that another attempt may be without is raised, and Ray Train makes another one.
    """
    import ray.train

    run: RunConfig = config["run"]
    actor: Any = config["memory"]
    try:
        _attempt(run, actor, lambda position: ray.train.report(asdict(position)))
    except _LASTING as error:
        fetch(actor.abort.remote(str(error)))
    except MemoryServiceError:
        if fetch(actor.failure.remote()) is None:
            raise


def _attempt(run: RunConfig, actor: Any, report: Any) -> None:
    workers = Workers()
    parts = Parts.open(run)
    checkpoints = Checkpoints(run.output)
    start = checkpoints.newest()
    with ExitStack() as stack:
        memory = _memory(parts, start, actor, workers)
        stack.callback(memory.close)
        events = None
        if workers.rank == 0:
            records = stack.enter_context(Records(run.output, start.position.step if start else 0))
            events = Events(records.on_step, records.on_problem)
            records.on_memory(fetch(actor.address.remote()))
        snapshot = None
        if isinstance(memory, RemoteLearningMemory):
            client, uri = memory.client, checkpoints.memory_uri
            snapshot = lambda: client.snapshot(uri)  # noqa: E731
        read = None
        if run.cluster.reader == "ray":
            first = (start.position if start else Position()).step + 1
            read = ray_reader(parts, first, workers.rank, workers.count)
        Session(parts, memory, start, snapshot, events, read, _device(run)).run(report)


def _memory(parts: Parts, start: Checkpoint | None, actor: Any, workers: Workers) -> LearningMemory:
    """The tables as they were at the checkpoint; the first worker has them put there for all."""
    tables = parts.run.training.tables
    if workers.rank == 0:
        uri = parts.first_memory() if start is None or tables.frozen else start.memory_uri
        step = start.position.step if start else 0
        fetch(actor.begin.remote(workers.count, step, None if tables.frozen else tables.optimizer, uri))
    if workers.count > 1:
        dist.barrier()
    address, attempt = fetch(actor.attempt.remote())
    if tables.frozen:
        return FrozenTables(MemoryClient.connect(address))
    return RemoteLearningMemory.connect(
        address, attempt, workers.rank, ClientConfig(), unreachable_s=parts.run.cluster.unreachable_s
    )


def _device(run: RunConfig) -> torch.device:
    import ray.train.torch

    return ray.train.torch.get_device() if run.cluster.gpu else torch.device("cpu")
