"""Adam for rows: only rows that received a gradient are updated, and only their moments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class AdamConfig:
    """Parameters of Adam (arXiv 1412.6980) without weight decay, as the Engram paper trains its tables."""

    learning_rate: float = 2e-3
    """Step size before bias correction."""
    beta1: float = 0.9
    """Decay rate of the first moment."""
    beta2: float = 0.999
    """Decay rate of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment, against division by zero."""


class RowAdam:
    """Optimizer state of one fp32 table, updated row by row as torch.optim.SparseAdam does."""

    def __init__(self, values: np.ndarray, config: AdamConfig):
        """Start with zero moments.

        Args:
            values: [rows, dim] float32, which `step` updates in place.
            config: parameters of Adam.
        """
        self.values, self.config, self.steps = values, config, 0
        self.first = np.zeros_like(values)
        self.second = np.zeros_like(values)

    def step(self, rows: np.ndarray, gradients: np.ndarray, scale: float = 1.0) -> None:
        """Apply one step.

        Args:
            rows: [U] int64, distinct row numbers.
            gradients: [U, dim] float32, summed over the positions that used the row.
            scale: factor on the learning rate, for schedules.
        """
        config = self.config
        self.steps += 1
        first = self.first[rows]
        first += (1 - config.beta1) * (gradients - first)
        second = self.second[rows]
        second += (1 - config.beta2) * (np.square(gradients) - second)
        self.first[rows], self.second[rows] = first, second
        rate = scale * config.learning_rate * np.sqrt(1 - config.beta2**self.steps) / (1 - config.beta1**self.steps)
        np.sqrt(second, out=second)
        second += config.eps
        first /= second
        first *= rate
        self.values[rows] -= first
