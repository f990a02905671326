"""What the ranks of the tests do; each writes what it found into the folder."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from memory_service import LocalMemory
from memory_service.training.control import Attempt
from memory_service.training.remote import RemoteLearningMemory
from reasoning.training.rows import FrozenTables
from reasoning.training.state import restore, state_of
from reasoning.training.trainer import StepReport, Trainer
from tests.reasoning.training.small import (
    hasher,
    new_model,
    take_steps,
    training,
    transpose_in_memory,
    values_of,
    write_tables,
)


def against_shards(folder: Path) -> None:
    """Train over each of the memories that jobs.json lists; write losses, norms, weights and tables."""
    for job in json.loads((folder / "jobs.json").read_text()):
        config = training(job["optimizer"], **job["settings"])
        attempt = Attempt(**job["attempt"])
        with closing(RemoteLearningMemory.connect(job["address"], attempt, dist.get_rank())) as memory:
            trainer = Trainer(new_model(), hasher(), memory, config)
            reports = take_steps(trainer, job["steps"])
            dist.barrier()
            if dist.get_rank() == 0:
                write_outcome(folder / f"{job['name']}.npz", trainer, reports)


def write_outcome(path: Path, trainer: Trainer, reports: list[StepReport]) -> None:
    found = {f"model.{name}": tensor.numpy() for name, tensor in trainer.model.state_dict().items()}
    found |= {f"table.{name}": values for name, values in values_of(trainer.memory, trainer.step_number).items()}
    losses, norms = [report.loss for report in reports], [report.gradient_norm for report in reports]
    np.savez(path, losses=losses, norms=norms, **found)


def divided(folder: Path) -> None:
    """Train by DDP and by FSDP2, with frozen tables: so that each rank can have tables of its own."""
    rank = dist.get_rank()
    outcome = {}
    for name, changes in {
        "ddp": {},
        "fsdp2": {"parallel": "fsdp2"},
        "fsdp2-again": {"parallel": "fsdp2", "activation_checkpointing": True},
        "fsdp2-parts": {"parallel": "fsdp2", "accumulation": 2},
        "fsdp2-loaded": {"parallel": "fsdp2", "transposed": True},
    }.items():
        trainer = _trainer(folder / f"{name}-{rank}", **changes)
        reports = take_steps(trainer, 6)
        state = state_of(trainer)
        if rank == 0:
            outcome[name] = [(r.loss, r.gradient_norm, r.expert_load, r.tokens) for r in reports]
            torch.save({key: value for key, value in state.items() if key.startswith("model.")}, folder / f"{name}.pt")
    if rank == 0:
        (folder / "divided.json").write_text(json.dumps(outcome))


def resumed(folder: Path) -> None:
    """Ten steps, and five and five from a state; bit by bit alike on every rank."""
    rank = dist.get_rank()
    for name, changes in {"ddp": {"fixed_reduction_order": True}, "fsdp2": {"parallel": "fsdp2"}}.items():
        undisturbed = _trainer(folder / f"{name}-whole-{rank}", **changes)
        take_steps(undisturbed, 5)
        expected, states = take_steps(undisturbed, 5), []
        first = _trainer(folder / f"{name}-first-{rank}", **changes)
        take_steps(first, 5)
        states.append(state_of(first))
        second = _trainer(folder / f"{name}-second-{rank}", seed=3, step=5, **changes)
        restore(second, states[0])
        found = take_steps(second, 5)
        assert [r.loss for r in found] == [r.loss for r in expected], name
        assert [r.gradient_norm for r in found] == [r.gradient_norm for r in expected], name
        whole, again = state_of(undisturbed), state_of(second)
        assert whole.keys() == again.keys()
        assert [key for key, tensor in whole.items() if not torch.equal(tensor, again[key])] == [], name
        if rank == 0:
            torch.save(states[0], folder / f"{name}-state.pt")
    (folder / f"resumed-{rank}").touch()


def _trainer(tables: Path, seed: int = 0, step: int = 0, transposed: bool = False, **changes: object) -> Trainer:
    config = training(frozen=True, **changes)
    memory = LocalMemory.load(str(write_tables(tables, config.tables.optimizer).uri))
    model = new_model(seed=seed)
    if transposed:
        transpose_in_memory(model)
    return Trainer(model, hasher(), FrozenTables(memory), config, step=step)
