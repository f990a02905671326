"""A training run on Ray: prepared by the driver, trained by workers, finished by the driver."""

from __future__ import annotations

import dataclasses
import math
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.pool.ray_fleet import FOREVER, RayFleet
from cluster.ray_runtime import fetch, ray_session
from cluster.training.memory import TrainingMemory
from cluster.training.worker import train_worker
from memory_service.learning.state import state_bytes
from memory_service.server.limits import DoorLimits
from reasoning.runs.checkpoints import Checkpoints
from reasoning.runs.config import RunConfig
from reasoning.runs.evaluation import HeldOutLoss
from reasoning.runs.parts import Parts
from reasoning.runs.progress import Bar
from reasoning.runs.run import finish, refuse_foreign
from reasoning.training.trainer import TrainingError

_STOP_S = 20.0


def train_on_ray(run: RunConfig, address: str | None = None, quiet: bool = False) -> HeldOutLoss:
    """Train with workers and memory shards on Ray, from the last checkpoint on, and write `output`/model.

    Args:
        run: what to train; all nodes must reach its `output` under the same path.
        address: a cluster's "HOST:PORT", or "auto"; None starts Ray on this machine.
        quiet: show no progress.

    Returns:
        Loss of the model on held-out documents.

    Raises:
        ValueError: the configuration does not fit its sources, its model or an earlier run in the same folder.
        TrainingError: the run has ended for a reason that trying again will not mend, or too often.
    """
    refuse_foreign(run.output)
    run = _absolute(run)
    for count in range(run.cluster.min_workers or run.cluster.workers, run.cluster.workers + 1):
        run.training.sequences_of_rank(count)
    parts = Parts.prepare(run, progress=not quiet)
    if Checkpoints(run.output).newest() is None:
        parts.first_memory()
    readers = run.cluster.workers if run.cluster.reader == "ray" else 0
    with ray_session(address, cpus=math.ceil(run.cluster.workers * run.cluster.cpus_per_worker) + readers) as ray:
        memory = _start_memory(parts)
        try:
            with Bar(run.output, quiet):
                _fit(run, memory)
            if (failure := fetch(memory.failure.remote())) is not None:
                raise TrainingError(failure)
        finally:
            with suppress(Exception):
                ray.get(memory.shutdown.remote(), timeout=_STOP_S)
            ray.kill(memory)
    return finish(parts)


def _fit(run: RunConfig, memory: Any) -> None:
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchTrainer

    cluster = run.cluster
    workers: Any = (cluster.min_workers, cluster.workers) if cluster.min_workers else cluster.workers
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"run": run, "memory": memory},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=cluster.gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker, **({"GPU": 1} if cluster.gpu else {})},
        ),
        run_config=RayRunConfig(
            name=f"attempts-{uuid.uuid4().hex[:8]}",
            storage_path=str(run.output / "ray"),
            failure_config=FailureConfig(max_failures=cluster.failures),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise TrainingError(
            f"the run has failed more than {cluster.failures} times, at last: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    causes = getattr(error, "worker_failures", None) or {0: error}
    return str(next(iter(causes.values()))).strip().splitlines()[-1]


def _start_memory(parts: Parts) -> Any:
    import ray

    tables, shards = parts.run.training.tables, parts.run.cluster.shards
    size = sum(spec.rows * state_bytes(spec, tables.optimizer) for spec in parts.specs)
    fleet = RayFleet(f"training-{uuid.uuid4().hex[:8]}", False, -(-size // shards), DoorLimits())
    return ray.remote(TrainingMemory).options(num_cpus=0, max_concurrency=4, **FOREVER).remote(fleet, shards)


def _absolute(run: RunConfig) -> RunConfig:
    return dataclasses.replace(run, output=Path(os.path.abspath(run.output)))
