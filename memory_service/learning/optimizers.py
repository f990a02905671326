"""Optimizers of table rows: what a row keeps beside its values, and how a gradient changes both.

The state of a row is one fp32 vector: its master values [dim], then the slots of the optimizer. A step touches the rows
that have a gradient and no others, so an optimizer is named after the dense one that it equals:

| name              | slots of a row | equals |
|-------------------|----------------|--------|
| `sgd`             | none           | torch.optim.SGD over the whole table |
| `adagrad`         | dim            | torch.optim.Adagrad over the whole table |
| `rowwise_adagrad` | 1              | FBGEMM's exact row-wise Adagrad: a row's accumulator is the mean of squares |
| `adam`            | 2 dim + 1      | torch.optim.Adam over the whole table: a row catches up on steps it missed |
| `sparse_adam`     | 2 dim          | torch.optim.SparseAdam: moments of a row decay only when it has a gradient |

Weight decay is none of theirs: it would touch every row in every step, and the Engram paper trains tables without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory_service.learning.zero_steps import BetaPair, zero_step_movement
from memory_service.tables.checks import shorten

Values = NDArray[np.float32]
OPTIMIZERS = ("sgd", "adagrad", "rowwise_adagrad", "adam", "sparse_adam")


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer of the rows of a memory, and its constants.

    Raises:
        ValueError: a value is out of range; the message names the field.
    """

    name: str = "sparse_adam"
    """`sgd`, `adagrad`, `rowwise_adagrad`, `adam` or `sparse_adam`."""
    beta1: float = 0.9
    """Decay rate of the first moment, for the Adams."""
    beta2: float = 0.999
    """Decay rate of the second moment, for the Adams."""
    eps: float = 1e-8
    """Added to the root of the second moment or of the accumulator, against division by zero."""

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ValueError(f"name: {shorten(self.name)} is no optimizer of rows; use {', '.join(OPTIMIZERS)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 0 and below 1")
        if not 0 < self.eps < 1:
            raise ValueError(f"eps: {self.eps} must be above 0 and below 1, such as 1e-8")
        if self.name == "adam" and self.beta1**2 >= self.beta2:
            raise ValueError(f"beta1: {self.beta1} squared must be below beta2={self.beta2}, or Adam diverges")


@dataclass(frozen=True)
class Clock:
    """The steps so far, as an update needs them."""

    step: int
    """Number of the step, from 1; bias corrections follow it."""
    rates: Sequence[float]
    """Learning rates of the steps up to `step`, the last one its own; those that no row has missed may be absent."""

    @property
    def rate(self) -> float:
        """Learning rate of the step."""
        return self.rates[-1]


class RowOptimizer(ABC):
    """An update rule for the state of rows, [n, dim + slots] float32."""

    catches_up = False
    """Whether a row changes in steps in which it has no gradient, so that it has to catch up before it is read."""

    def __init__(self, config: OptimizerConfig, dim: int) -> None:
        self.config = config
        self.dim = dim

    @property
    @abstractmethod
    def slots(self) -> int:
        """Values that a row keeps beside its own; all zero at first."""

    @abstractmethod
    def step(self, state: Values, gradients: Values, clock: Clock) -> None:
        """Apply a step in place.

        Args:
            state: rows with a gradient, current up to the step before, [n, dim + slots].
            gradients: [n, dim].
            clock: the step.
        """

    def catch_up(self, state: Values, clock: Clock) -> NDArray[np.bool_]:
        """Bring rows up to `clock.step` in place, as steps with a zero gradient would.

        Returns:
            The rows whose values have changed, bool [n].
        """
        return np.zeros(len(state), np.bool_)


class Sgd(RowOptimizer):
    """p -= rate * g."""

    slots = 0

    def step(self, state: Values, gradients: Values, clock: Clock) -> None:
        """See RowOptimizer."""
        state[:] = _fused(gradients, -np.float32(clock.rate), state)


class Adagrad(RowOptimizer):
    """a += g^2; p -= rate * g / (sqrt(a) + eps), value by value (Duchi, Hazan and Singer, 2011)."""

    @property
    def slots(self) -> int:
        """The accumulator of each value."""
        return self.dim

    def step(self, state: Values, gradients: Values, clock: Clock) -> None:
        """See RowOptimizer."""
        values, total = state[:, : self.dim], state[:, self.dim :]
        total[:] = _fused(gradients, gradients, total)
        values -= np.float32(clock.rate) * gradients / (np.sqrt(total) + np.float32(self.config.eps))


class RowwiseAdagrad(RowOptimizer):
    """Adagrad with one accumulator for a row, the mean of squares of its gradient."""

    slots = 1

    def step(self, state: Values, gradients: Values, clock: Clock) -> None:
        """See RowOptimizer."""
        values, total = state[:, : self.dim], state[:, self.dim :]
        total += np.square(gradients).mean(axis=1, keepdims=True)
        values -= np.float32(clock.rate) * gradients / (np.sqrt(total) + np.float32(self.config.eps))


class SparseAdam(RowOptimizer):
    """Adam (arXiv 1412.6980) in which moments decay only in steps in which the row has a gradient."""

    @property
    def slots(self) -> int:
        """Both moments of each value."""
        return 2 * self.dim

    def step(self, state: Values, gradients: Values, clock: Clock) -> None:
        """See RowOptimizer."""
        config, dim = self.config, self.dim
        values, first, second = state[:, :dim], state[:, dim : 2 * dim], state[:, 2 * dim : 3 * dim]
        first += np.float32(1 - config.beta1) * (gradients - first)
        second *= np.float32(config.beta2)
        second += np.float32(1 - config.beta2) * np.square(gradients)
        self._move(values, first, second, clock)

    def _move(self, values: Values, first: Values, second: Values, clock: Clock) -> None:
        config = self.config
        rate = clock.rate * np.sqrt(1 - config.beta2**clock.step) / (1 - config.beta1**clock.step)
        values -= np.float32(rate) * first / (np.sqrt(second) + np.float32(config.eps))


class Adam(SparseAdam):
    """Adam as over the whole table: the last slot of a row is the step up to which it is current."""

    catches_up = True

    @property
    def slots(self) -> int:
        """Both moments of each value, and the step up to which the row is current, 0 for one never touched."""
        return 2 * self.dim + 1

    def step(self, state: Values, gradients: Values, clock: Clock) -> None:
        """See RowOptimizer."""
        super().step(state, gradients, clock)
        state[:, -1] = clock.step

    def _move(self, values: Values, first: Values, second: Values, clock: Clock) -> None:
        config = self.config
        root = np.sqrt(second)
        root /= np.float32(np.sqrt(1 - config.beta2**clock.step))
        root += np.float32(config.eps)
        values -= np.float32(clock.rate / (1 - config.beta1**clock.step)) * first / root

    def catch_up(self, state: Values, clock: Clock) -> NDArray[np.bool_]:
        """See RowOptimizer."""
        dim, last = self.dim, state[:, -1].astype(np.int64)
        behind = (last > 0) & (last < clock.step)
        if behind.any():
            rows = state[behind]
            betas = BetaPair(self.config.beta1, self.config.beta2, self.config.eps)
            first, second = rows[:, dim : 2 * dim], rows[:, 2 * dim : 3 * dim]
            rows[:, :dim] -= zero_step_movement(first, second, last[behind], clock.step, clock.rates, betas)
            missed = (clock.step - last[behind])[:, None].astype(np.float64)
            first *= (self.config.beta1**missed).astype(np.float32)
            second *= (self.config.beta2**missed).astype(np.float32)
            rows[:, -1] = clock.step
            state[behind] = rows
        return behind


def _fused(left: Values, right: Values | np.float32, addend: Values) -> Values:
    """left * right + addend, rounded once, as the fused multiply-add of torch's CPU kernels does."""
    exact = np.multiply(left, right, dtype=np.float64)
    exact += addend
    return exact.astype(np.float32)


_RULES: dict[str, type[RowOptimizer]] = {
    "sgd": Sgd,
    "adagrad": Adagrad,
    "rowwise_adagrad": RowwiseAdagrad,
    "adam": Adam,
    "sparse_adam": SparseAdam,
}


def row_optimizer(config: OptimizerConfig, dim: int) -> RowOptimizer:
    """Return the update rule that a configuration names, for rows of `dim` values."""
    return _RULES[config.name](config, dim)
