"""The whole step against a plain loop in one process: tables as dense embeddings under torch's own optimizers.

Bit by bit, for tables under SGD and Adagrad and for the backbone: in this process, and for workers and shards.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from memory_service.learning.optimizers import OptimizerConfig
from reasoning.corpora.tokens import Sequences
from reasoning.engram.hashing import NgramHasher
from reasoning.model.batch import Batch
from reasoning.runs.initial_rows import NormalRows
from reasoning.training.config import TrainingConfig
from reasoning.training.trainer import Trainer
from tests.memory_service.training.conftest import Shards
from tests.reasoning.training.rank_jobs import write_outcome
from tests.reasoning.training.ranks import run_ranks
from tests.reasoning.training.small import (
    hasher,
    local_memory,
    new_model,
    sequences,
    share_of,
    specs,
    take_steps,
    training,
    write_tables,
)

BITWISE = ("sgd", "adagrad")
ADAM_TOLERANCE = 2e-5
"""Largest difference of a value under Adam, while values move by 0.06: rows catch up by a closed form."""
CLIP = 0.5
"""Every step is clipped by it, so the norm of all gradients decides every bit."""


def settings_of(optimizer: str, steps: int) -> dict[str, Any]:
    """Settings of a run. Under Adam it is slower: else rounding ends in the choice of another expert, and far apart."""
    rate = 5e-4 if optimizer == "adam" else 5e-3
    return {"steps": steps, "learning_rate": rate, "clip_norm": CLIP, "balance_rate": 0.01}


class DenseRun:
    """Ranks one after the other in one process, with a table as one parameter."""

    def __init__(self, config: TrainingConfig, ranks: int, tables: dict[str, np.ndarray], hasher: NgramHasher) -> None:
        self.config, self.ranks, self.hasher = config, ranks, hasher
        self.model = new_model().train()
        self.tables = {
            spec.layer: nn.Embedding.from_pretrained(torch.from_numpy(tables[spec.name].copy()), freeze=False)
            for spec in specs()
        }
        self.losses, self.norms = [], []
        self.backbone_optimizer = torch.optim.AdamW(self._groups(), betas=(0.9, 0.95), fused=True)
        weights, each = [table.weight for table in self.tables.values()], config.tables.optimizer
        self.tables_optimizer = {
            "sgd": lambda: torch.optim.SGD(weights, fused=True),
            "adagrad": lambda: torch.optim.Adagrad(weights, eps=each.eps, fused=True),
            "adam": lambda: torch.optim.Adam(weights, betas=(each.beta1, each.beta2), eps=each.eps),
        }[each.name]()

    def _groups(self) -> list[dict]:
        vectors = ("conv", "q_weight", "k_weight")
        spared = {n for n, p in self.model.named_parameters() if p.ndim == 1 or any(part in n for part in vectors)}
        named = list(self.model.named_parameters())
        return [
            {"params": [p for n, p in named if n not in spared], "weight_decay": self.config.weight_decay},
            {"params": [p for n, p in named if n in spared], "weight_decay": 0.0},
        ]

    def step(self, number: int) -> None:
        weights = list(self.model.parameters())
        parameters = [*weights, *(table.weight for table in self.tables.values())]
        total: list[torch.Tensor] = []
        loads, losses = [], []
        batch = sequences(number, self.config.batch)
        for rank in range(self.ranks):
            loss = self._loss(share_of(batch, rank, self.ranks))
            gradients = torch.autograd.grad(loss, parameters)
            total = [a + b for a, b in zip(total, gradients, strict=True)] if total else list(gradients)
            losses.append(loss.item())
            loads.append([load.double() for _, load in self.model.expert_loads()])
        mean = [gradient / self.ranks for gradient in total]
        squares = [torch.linalg.vector_norm(gradient).double().square() for gradient in mean[: len(weights)]]
        squares += [gradient.double().square().sum() for gradient in mean[len(weights) :]]  # shards sum in fp64
        norm = sum(map(float, squares)) ** 0.5
        scale = min(1.0, self.config.clip_norm / (norm + 1e-6))
        for parameter, gradient in zip(parameters, mean, strict=True):
            parameter.grad = gradient * scale
        self._apply(number)
        with torch.no_grad():
            for (bias, _), *each in zip(self.model.expert_loads(), *loads, strict=True):
                load = torch.stack(each).sum(0)
                bias += self.config.balance_rate * (load.mean() - load).sign().float()
        self.losses.append(sum(losses) / self.ranks)
        self.norms.append(norm)

    def _apply(self, number: int) -> None:
        config = self.config
        rate = config.learning_rate * config.rate((number - 1) / config.steps)
        for optimizer, factor in ((self.backbone_optimizer, 1.0), (self.tables_optimizer, config.tables.rate_factor)):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()

    def _loss(self, batch: Sequences) -> torch.Tensor:
        rows = self._hash(batch)
        inputs = Batch.of_whole_sequences(torch.from_numpy(batch.tokens[:, :-1]))
        hidden = self.model(inputs, lambda layer: self.tables[layer](rows[layer]).flatten(1))
        return F.cross_entropy(self.model.logits(hidden), torch.from_numpy(batch.tokens[:, 1:]).reshape(-1))

    def _hash(self, batch: Sequences) -> dict[int, torch.Tensor]:
        """Each document of each sequence by itself."""
        found: dict[int, list[np.ndarray]] = {}
        for tokens, documents in zip(batch.tokens[:, :-1], batch.documents[:, :-1], strict=True):
            for part in np.split(tokens, np.flatnonzero(np.diff(documents)) + 1):
                for layer, ids in self.hasher.hash(part).items():
                    found.setdefault(layer, []).append(ids)
        return {layer: torch.from_numpy(np.concatenate(parts)) for layer, parts in found.items()}

    def check(self, outcome: dict[str, np.ndarray]) -> None:
        """Compare with what a Trainer has come to."""
        exact = self.config.tables.optimizer.name in BITWISE
        assert min(self.norms) > CLIP, "every step is clipped"
        np.testing.assert_allclose(outcome["norms"], self.norms, rtol=1e-12 if exact else 1e-5)
        np.testing.assert_allclose(outcome["losses"], self.losses, rtol=1e-12 if exact else 1e-5)
        found = {f"model.{name}": tensor.numpy() for name, tensor in self.model.state_dict().items()}
        found |= {f"table.{spec.name}": self.tables[spec.layer].weight.detach().numpy() for spec in specs()}
        assert {*found, "losses", "norms"} == {*outcome}
        for name, expected in found.items():
            atol = 0 if exact else ADAM_TOLERANCE
            np.testing.assert_allclose(outcome[name], expected, rtol=0, atol=atol, err_msg=name)


def start_values() -> dict[str, np.ndarray]:
    return {spec.name: np.concatenate(list(NormalRows(spec, 0.02, 0))) for spec in specs()}


def dense(config: TrainingConfig, ranks: int, steps: int) -> DenseRun:
    run = DenseRun(config, ranks, start_values(), hasher())
    for number in range(1, steps + 1):
        run.step(number)
    return run


def check_alone(optimizer: str, steps: int, folder: Path) -> None:
    config = training(optimizer, **settings_of(optimizer, steps))
    trainer = Trainer(new_model(), hasher(), local_memory(folder / "tables", config), config)
    write_outcome(folder / "alone.npz", trainer, take_steps(trainer, steps))
    outcome = dict(np.load(folder / "alone.npz"))
    before = start_values()
    assert all((outcome[f"table.{name}"] != values).any() for name, values in before.items())
    dense(config, 1, steps).check(outcome)


@pytest.mark.parametrize("optimizer", [*BITWISE, "adam"])
def test_a_worker_alone_trains_like_a_dense_loop(optimizer, tmp_path):
    check_alone(optimizer, 8, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [*BITWISE, "adam"])
def test_a_worker_alone_trains_like_a_dense_loop_for_fifty_steps(optimizer, tmp_path):
    check_alone(optimizer, 50, tmp_path)


def check_ranks(ranks: int, memories: list[tuple[str, int]], steps: int, folder: Path) -> None:
    """Train on (optimizer, shards): one group of processes for all memories, which stand ready before it starts."""
    jobs = []
    with ExitStack() as stack:
        for name, shards in memories:
            optimizer, title = OptimizerConfig(name), f"{name}-{shards}"
            memory = Shards(write_tables(folder / title, optimizer), shards, stack)
            job = {"name": title, "optimizer": name, "steps": steps, "address": memory.address}
            settings = {**settings_of(name, steps), "fixed_reduction_order": True}
            jobs.append({**job, "settings": settings, "attempt": asdict(memory.begin(ranks, optimizer))})
        (folder / "jobs.json").write_text(json.dumps(jobs))
        run_ranks(ranks, "against_shards", folder)
    for name in {name for name, _ in memories}:
        reference = dense(training(name, **settings_of(name, steps)), ranks, steps)
        for shards in (shards for other, shards in memories if other == name):
            reference.check(dict(np.load(folder / f"{name}-{shards}.npz")))


@pytest.mark.slow
def test_two_workers_and_three_shards_train_like_a_dense_loop(tmp_path):
    check_ranks(2, [(name, 3) for name in (*BITWISE, "adam")], 6, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "memories"),
    [
        (2, [(name, shards) for name in (*BITWISE, "adam") for shards in (1, 3)]),
        (4, [("sgd", 3), ("adagrad", 1), ("adagrad", 3), ("adam", 3)]),
    ],
    ids=["2", "4"],
)
def test_workers_and_shards_train_like_a_dense_loop_for_fifty_steps(ranks, memories, tmp_path):
    check_ranks(ranks, memories, 50, tmp_path)


def test_the_tables_that_are_compared_are_divided_into_many_blocks():
    assert min(spec.blocks for spec in specs()) >= 6
