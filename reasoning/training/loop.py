"""The training loop: one process, backbone by AdamW, memory rows by row-wise Adam."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from memory_service.learning.row_adam import AdamConfig
from reasoning.architectures.base import ModelConfig
from reasoning.architectures.registry import build_backbone
from reasoning.config.engram import EngramConfig
from reasoning.engram.hashing import NgramHasher
from reasoning.engram.model_hasher import table_specs
from reasoning.model.batch import Batch
from reasoning.training.corpus import Stream
from reasoning.training.recipe import TrainingConfig
from reasoning.training.tables import TrainableTables


@dataclass(frozen=True)
class Progress:
    """The report of a training step."""

    step: int
    """Number of the step, from 1."""
    share: float
    """Fraction of the run that is done, up to 1."""
    loss: float
    """Cross-entropy in nats a token, before the step."""
    tokens: int
    """Number of tokens seen since the start."""
    seconds: float
    """Seconds since the start."""


def memory_of(config: ModelConfig) -> EngramConfig:
    """Return the Engram layers of a model; ValueError where it has none."""
    if config.engram is None:
        raise ValueError("engram_layer_ids: a model without Engram layers has no tables to train; name a layer")
    return config.engram


class Trainer:
    """A model, its tables, and the optimizers of both."""

    def __init__(self, model_config: ModelConfig, hasher: NgramHasher, stream: Stream, config: TrainingConfig):
        positions = model_config.max_position_embeddings
        if config.window > positions:
            raise ValueError(f"window={config.window}: the model has {positions} positions; use at most that many")
        self.config, self.hasher, self.stream, self.engram = config, hasher, stream, memory_of(model_config)
        generator = torch.Generator().manual_seed(config.seed)
        self.model = build_backbone(model_config).initialise(generator)
        adam = AdamConfig(learning_rate=config.learning_rate * config.table_rate_factor)
        self.tables = TrainableTables(
            table_specs(self.engram, hasher), adam, model_config.initializer_range, config.seed
        )
        self.optimizer = torch.optim.AdamW(self._groups(), lr=config.learning_rate, betas=(0.9, 0.95), fused=True)

    def _groups(self) -> list[dict[str, object]]:
        """Return parameter groups: matrices decay, vectors do not; a convolution's weights are a vector a channel."""
        named = list(self.model.named_parameters())
        matrices = [p for name, p in named if p.ndim > 1 and "engram.conv" not in name and "_weight" not in name]
        chosen = {id(p) for p in matrices}
        vectors = [p for _, p in named if id(p) not in chosen]
        return [
            {"params": matrices, "weight_decay": self.config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]

    def run(self, on_step: Callable[[Progress], None]) -> None:
        """Train to the end of the configured steps or minutes."""
        begin = time.monotonic()
        self.model.train()
        share = 0.0
        for step, starts in enumerate(self.stream.windows(self.config.window, self.config.batch, self.config.seed), 1):
            loss = self.step(starts, self._rate(share))
            seconds = time.monotonic() - begin
            share = self._share(step, seconds)
            on_step(Progress(step, share, loss, step * self.config.batch * self.config.window, seconds))
            if share >= 1.0:
                break
        self.model.eval()

    def step(self, starts: np.ndarray, rate: float) -> float:
        """Take an optimizer step on the windows at `starts` [B]; `rate` scales the learning rates.

        Returns:
            The loss before the step.
        """
        places = starts[:, None] + np.arange(self.config.window + 1)
        ids = torch.from_numpy(self.stream.tokens[places].astype(np.int64))
        rows = self.tables.gather(self._hash(places[:, :-1]))
        hidden = self.model(Batch.of_whole_sequences(ids[:, :-1]), rows)
        loss = F.cross_entropy(self.model.logits(hidden), ids[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.tables.step(rows, rate)
        self._balance()
        return loss.item()

    def _hash(self, places: np.ndarray) -> dict[int, np.ndarray]:
        """Return the row ids of windows [B, S], whose n-grams cross neither windows nor documents."""
        documents = self.stream.documents[places] + len(self.stream.sizes) * np.arange(len(places))[:, None]
        return self.hasher.hash(self.stream.tokens[places].ravel(), documents=documents.ravel())

    def _share(self, step: int, seconds: float) -> float:
        return min(1.0, step / self.config.steps if self.config.steps else seconds / (60 * self.config.minutes))

    def _rate(self, share: float) -> float:
        warm_up = self.config.warm_up
        return min(share / warm_up, (1 - share) / (1 - warm_up)) if share > 0 else 1e-3

    @torch.no_grad()
    def _balance(self) -> None:
        """Shift each router towards experts that got less than their share (arXiv 2408.15664)."""
        for bias, load in self.model.expert_loads():
            share = load.float()
            bias += self.config.balance_rate * (share.mean() - share).sign()
