"""Settings of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from memory_service.learning.optimizers import OptimizerConfig

SCHEDULES = ("linear", "cosine", "constant")
OPTIMIZERS = ("adamw", "muon")
PRECISIONS = ("fp32", "bf16")
PARALLEL = ("ddp", "fsdp2")


@dataclass(frozen=True)
class TablesConfig:
    """How the tables of the memory are trained.

    Raises:
        ValueError: a value is out of range; the message begins with its field.
    """

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer of the rows."""
    rate_factor: float = 5.0
    """Learning rate of the rows relative to the backbone's, as in the Engram paper."""
    frozen: bool = False
    """Whether rows are read and never changed."""

    def __post_init__(self) -> None:
        if not 0 < self.rate_factor < math.inf:
            raise ValueError(f"rate_factor: {self.rate_factor} must be above 0; freeze the tables to leave them alone")


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run. Learning rates follow the fraction of the run that is done.

    Raises:
        ValueError: a value is out of range; the message begins with its field.
    """

    steps: int = 0
    """Number of steps after which the run ends; 0 to end it after `minutes`."""
    minutes: float = 0.0
    """Minutes of training after which the run ends; 0 to end it after `steps`."""
    batch: int = 8
    """Number of sequences in a step, over all workers."""
    accumulation: int = 1
    """Number of parts in which a worker goes through its share of a batch: more need less memory."""
    optimizer: str = "adamw"
    """Optimizer of the backbone: `adamw`, or `muon` for its matrices and AdamW for the rest."""
    learning_rate: float = 2e-3
    """Peak learning rate of the backbone."""
    schedule: str = "linear"
    """What follows the linear warm-up: `linear` or `cosine` decay to zero, or `constant`."""
    warm_up: float = 0.02
    """Fraction of the run that warms up."""
    weight_decay: float = 0.1
    """Weight decay of the backbone's matrices; tables, norms and convolutions have none."""
    clip_norm: float = 1.0
    """Largest norm of all gradients together, the tables' included."""
    precision: str = "fp32"
    """Precision of products: `fp32`, or `bf16` by autocast, with fp32 weights and fp32 rows either way."""
    activation_checkpointing: bool = False
    """Keep the inputs of layers only, and compute what is inside again in the backward pass."""
    balance_rate: float = 1e-3
    """Step by which the routers' correction bias moves towards even load (arXiv 2408.15664)."""
    sequence_balance: float = 0.0
    """Weight of the sequence-wise balance loss of DeepSeek-V3 (arXiv 2412.19437, equation 17), such as 1e-4."""
    mtp_weight: float = 0.0
    """Weight of the loss of multi-token prediction, such as 0.3; 0 leaves that layer alone."""
    parallel: str = "ddp"
    """How several workers share the backbone: `ddp`, a copy each, or `fsdp2`, a part of every layer each."""
    fixed_reduction_order: bool = False
    """Sum gradients in the order of the ranks: the same bits on any network, for more traffic; with `ddp`."""
    seed: int = 0
    """Seed of the initial weights and of the order of the data."""
    tables: TablesConfig = field(default_factory=TablesConfig)
    """How the tables are trained."""

    def __post_init__(self) -> None:
        if (self.steps > 0) == (self.minutes > 0) or min(self.steps, self.minutes) < 0:
            raise ValueError(f"steps: {self.steps}, minutes: {self.minutes}: give exactly one of the two, above zero")
        for name in ("batch", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: {getattr(self, name)} must be above 0 and finite")
        for name in ("weight_decay", "balance_rate", "sequence_balance", "mtp_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: {getattr(self, name)} must be 0 or more, and finite")
        if not 0 < self.warm_up < 1:
            raise ValueError(f"warm_up: {self.warm_up} must be a share of the run above 0 and below 1, such as 0.02")
        self._check_choices()

    def _check_choices(self) -> None:
        choices = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "precision": PRECISIONS, "parallel": PARALLEL}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: {getattr(self, name)!r} is unknown; use {' or '.join(allowed)}")
        if self.parallel == "fsdp2" and (self.optimizer == "muon" or self.fixed_reduction_order):
            raise ValueError("parallel: fsdp2 goes with adamw and without fixed_reduction_order; use ddp for those")

    def sequences_of_rank(self, ranks: int) -> int:
        """Sequences that one of `ranks` workers has in a step.

        Raises:
            ValueError: the batch cannot be divided among them.
        """
        if self.batch % (ranks * self.accumulation):
            raise ValueError(
                f"batch: {self.batch} sequences cannot be divided among {ranks} workers in {self.accumulation} parts "
                f"each; use a multiple of {ranks * self.accumulation}"
            )
        return self.batch // ranks

    def share(self, step: int, seconds: float) -> float:
        """Fraction of the run that is done after some steps and seconds of training, up to 1."""
        return min(1.0, step / self.steps if self.steps else seconds / (60 * self.minutes))

    def rate(self, share: float) -> float:
        """Factor on the learning rates of a step that begins when `share` of the run is done, from above 0 to 1."""
        if share < self.warm_up:
            return max(share / self.warm_up, 1e-3)
        rest = (share - self.warm_up) / (1 - self.warm_up)
        return {"linear": 1 - rest, "cosine": (1 + math.cos(math.pi * rest)) / 2, "constant": 1.0}[self.schedule]
