"""The training step of one worker: backbone here, tables wherever they are."""

from __future__ import annotations

import math
import time
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from memory_service.tables.spec import TableSpec
from memory_service.training.memory import LearningMemory
from reasoning.architectures.base import Backbone, ModelConfig
from reasoning.config.engram import EngramConfig
from reasoning.corpora.tokens import Sequences
from reasoning.engram.hashing import NgramHasher
from reasoning.engram.model_hasher import table_specs
from reasoning.training.config import TrainingConfig
from reasoning.training.objective import Objective
from reasoning.training.optimizers import BackboneOptimizer
from reasoning.training.parallel import Workers, squared_norm
from reasoning.training.rows import StepRows


class TrainingError(ValueError):
    """A step that cannot be taken; nothing of it has been applied."""


@dataclass(frozen=True)
class StepReport:
    """What a step did. Losses and loads are those of all workers, times those of this one."""

    step: int
    """Number of the step, from 1."""
    loss: float
    """Cross-entropy in nats a token, before the step."""
    tokens: int
    """Tokens predicted in the step, by all workers."""
    rate: float
    """Learning rate of the backbone."""
    gradient_norm: float
    """Norm of all gradients together, before clipping."""
    seconds: float
    """Duration of the step."""
    rows_wait_s: float
    """Seconds of it spent waiting for rows."""
    push_wait_s: float
    """Seconds of it spent waiting for the norm of the tables' gradients, after the backward pass."""
    expert_load: float
    """Tokens of the busiest expert over those of an even share, averaged over the layers; 0 without experts."""
    gates: dict[int, float]
    """By Engram layer, the part of the memory's values that its gate let through."""


def memory_of(config: ModelConfig) -> EngramConfig:
    """Return the Engram layers of a model; ValueError where it has none."""
    if config.engram is None:
        raise ValueError("engram_layer_ids: a model without Engram layers has no tables to train; name a layer")
    return config.engram


class Trainer:
    """A model, its optimizer, and the memory that it reads and writes, for one worker."""

    def __init__(
        self,
        model: Backbone,
        hasher: NgramHasher,
        memory: LearningMemory,
        config: TrainingConfig,
        workers: Workers | None = None,
        step: int = 0,
        seconds: float = 0.0,
    ) -> None:
        """Train a model.

        Args:
            model: its weights are alike on all workers.
            hasher: of the model's tokenizer.
            memory: the tables.
            config: settings of the run.
            workers: the ranks that train together; None for all of torch's default process group.
            step: steps taken already.
            seconds: seconds of training already.
        """
        self.model, self.hasher, self.memory, self.config = model, hasher, memory, config
        self.workers = workers or Workers()
        self.step_number = step
        """Steps taken so far."""
        self.seconds = seconds
        """Seconds of training so far, by the first worker's clock: the same number on all workers."""
        self._sequences = config.sequences_of_rank(self.workers.count)
        self.specs: dict[int, TableSpec] = {s.layer: s for s in table_specs(memory_of(model.config), hasher)}
        model.checkpoint_activations = config.activation_checkpointing
        if not config.mtp_weight and getattr(model, "mtp", None) is not None:
            model.mtp.requires_grad_(False)
        self._objective = self.workers.wrap(Objective(model, config), config)
        self.optimizer = BackboneOptimizer(list(model.named_parameters()), config)
        self._committed: Future[None] = Future()
        self._committed.set_result(None)
        self._next: tuple[Sequences, StepRows] | None = None

    def step(self, batch: Sequences, rate: float, following: Sequences | None = None) -> StepReport:
        """Take a step.

        Args:
            batch: this worker's sequences.
            rate: factor on the learning rates.
            following: sequences of the next step, whose rows are requested as soon as this step is committed.

        Raises:
            TrainingError: loss or gradients are not finite; names the step.
            MemoryServiceError: the memory cannot be reached, or refuses gradients.
        """
        began = time.perf_counter()
        number, config = self.step_number + 1, self.config
        self.model.train()
        rows = self._rows_of(batch)
        loads, entropy = self._passes(batch, rows, number, rate)
        scale, norm, waited_s = self._clip(rows, number, entropy)
        self._committed = self.memory.commit(number, scale / self.workers.count)
        self.step_number = number
        self._next = None if following is None else (following, self._request(following))
        for parameter in self.model.parameters():
            if parameter.grad is not None and scale != 1:
                parameter.grad.mul_(scale)
        self.optimizer.step(config.learning_rate * rate)
        loss = self._share(loads, entropy, time.perf_counter() - began)
        return StepReport(
            step=number,
            loss=loss,
            tokens=self.workers.count * batch.tokens[:, 1:].size,
            rate=config.learning_rate * rate,
            gradient_norm=norm,
            seconds=time.perf_counter() - began,
            rows_wait_s=rows.waited_s,
            push_wait_s=waited_s,
            expert_load=_busiest(loads),
            gates={layer: float(mean) for layer, mean in self.model.gate_means()},
        )

    def finish(self) -> None:
        """Wait until the last step is applied to the tables.

        Raises:
            MemoryServiceError: it could not be.
        """
        self._committed.result()

    def _rows_of(self, batch: Sequences) -> StepRows:
        if batch.tokens.shape[0] != self._sequences:
            raise ValueError(f"batch: {batch.tokens.shape[0]} sequences for this worker, expected {self._sequences}")
        requested = self._next
        return requested[1] if requested is not None and requested[0] is batch else self._request(batch)

    def _request(self, batch: Sequences) -> StepRows:
        ids = self._hash(batch)
        return StepRows(self.memory, self.specs, ids, self.step_number + 1, self._committed, self.model.device)

    def _hash(self, batch: Sequences) -> dict[int, np.ndarray]:
        """Return the row ids of all sequences, whose n-grams cross neither sequences nor documents: [B * S, C]."""
        tokens, documents = batch.tokens[:, :-1], batch.documents[:, :-1].astype(np.int64)
        apart = documents + (int(documents.max()) + 1) * np.arange(len(documents))[:, None]
        return self.hasher.hash(tokens.ravel(), documents=apart.ravel(), blocked=documents.ravel() < 0)

    def _passes(self, batch: Sequences, rows: StepRows, number: int, rate: float) -> tuple[list[Tensor], Tensor]:
        """Forward and backward passes of all parts: the experts' loads by layer, and the cross-entropy."""
        device, parts = self.model.device, self.config.accumulation
        size, length = self._sequences // parts, batch.tokens.shape[1] - 1
        loads: list[Tensor] = []
        entropy = torch.zeros((), dtype=torch.float64)
        table_rate = self.config.learning_rate * rate * self.config.tables.rate_factor
        for part in range(parts):
            chosen = slice(part * size, (part + 1) * size)
            tokens = torch.from_numpy(batch.tokens[chosen].astype(np.int64)).to(device)
            scored = torch.from_numpy(batch.documents[chosen] >= 0).to(device)
            last = part == parts - 1
            source = rows.part(slice(chosen.start * length, chosen.stop * length), table_rate if last else None)
            with self.workers.part(self._objective, last):
                loss, found = self._objective(tokens, scored, source)
                if not math.isfinite(value := float(loss.detach())):
                    raise TrainingError(f"step {number}: the loss is {value}; nothing of the step is applied")
                (loss / parts).backward()
            entropy += found.double().cpu() / parts
            now = [load.double() for _, load in self.model.expert_loads()]
            loads = [a + b for a, b in zip(loads, now, strict=True)] if loads else now
        return loads, entropy

    def _clip(self, rows: StepRows, number: int, entropy: Tensor) -> tuple[float, float, float]:
        """Factor by which all gradients are clipped and their norm, the same on all workers, and seconds of waiting."""
        tables = self.memory.squared_norm(number)
        backbone = float(squared_norm(self.model.parameters()))
        began = time.perf_counter()
        rows.wait_pushed()
        norm = math.sqrt(backbone + tables.result() / self.workers.count**2)
        waited_s = time.perf_counter() - began
        if not math.isfinite(norm):
            raise TrainingError(
                f"step {number}: the gradient norm is {norm} at a loss of {float(entropy):.4g}; nothing of the step is "
                "applied. Lower the learning rate, or look at the sequences of this step"
            )
        return min(1.0, self.config.clip_norm / (norm + 1e-6)), norm, waited_s

    @torch.no_grad()
    def _share(self, loads: list[Tensor], entropy: Tensor, seconds: float) -> float:
        """Exchange loads, losses and time; shift routers towards experts below their share; return the mean loss."""
        told = torch.tensor([float(entropy), seconds if self.workers.rank == 0 else 0.0], dtype=torch.float64)
        vector = self.workers.sum(torch.cat([told.to(self.model.device), *loads]))
        self.seconds += float(vector[1])
        parts = vector[2:].split([len(load) for load in loads]) if loads else []
        for (bias, _), load, summed in zip(self.model.expert_loads(), loads, parts, strict=True):
            bias += self.config.balance_rate * (summed.mean() - summed).sign().to(bias.dtype)
            load.copy_(summed)
        return float(vector[0]) / self.workers.count


def _busiest(loads: list[Tensor]) -> float:
    return float(sum(load.max() / load.mean() for load in loads) / len(loads)) if loads else 0.0
