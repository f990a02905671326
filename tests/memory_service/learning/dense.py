"""The reference of rows that learn: a dense table under torch's optimizers, every row in every step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from memory_service.learning.optimizers import OptimizerConfig


class RowwiseAdagrad(torch.optim.Optimizer):
    """FBGEMM's exact row-wise Adagrad, in torch's own operations."""

    def __init__(self, params, lr, eps):
        super().__init__(params, {"lr": lr, "eps": eps})

    def step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                total = self.state[weight].setdefault("sum", torch.zeros(len(weight), 1))
                total += weight.grad.square().mean(dim=1, keepdim=True)
                weight.data -= group["lr"] * weight.grad / (total.sqrt() + group["eps"])


class Dense:
    """A table as one parameter."""

    def __init__(self, values: np.ndarray, config: OptimizerConfig) -> None:
        self.weight = torch.nn.Parameter(torch.from_numpy(values.copy()))
        betas = (config.beta1, config.beta2)
        self.optimizer = {
            "sgd": lambda p: torch.optim.SGD(p, lr=1.0, fused=True),
            "adagrad": lambda p: torch.optim.Adagrad(p, lr=1.0, eps=config.eps, fused=True),
            "rowwise_adagrad": lambda p: RowwiseAdagrad(p, lr=1.0, eps=config.eps),
            "adam": lambda p: torch.optim.Adam(p, lr=1.0, betas=betas, eps=config.eps),
            "sparse_adam": lambda p: torch.optim.SparseAdam(p, lr=1.0, betas=betas, eps=config.eps),
        }[config.name]([self.weight])
        self._sparse = config.name == "sparse_adam"

    @property
    def values(self) -> np.ndarray:
        return self.weight.detach().numpy()

    def step(self, rows: np.ndarray, gradients: np.ndarray, rate: float) -> None:
        self.optimizer.param_groups[0]["lr"] = rate
        if self._sparse:
            index, values = torch.from_numpy(rows)[None], torch.from_numpy(gradients)
            self.weight.grad = torch.sparse_coo_tensor(index, values, self.weight.shape)
        else:
            self.weight.grad = torch.zeros_like(self.weight)
            self.weight.grad[torch.from_numpy(rows)] = torch.from_numpy(gradients)
        self.optimizer.step()


def batches(rows: int, dim: int, steps: int, seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Row sets that overlap, grow and shrink, with gradients of very different sizes, and a falling learning rate."""
    rng = np.random.default_rng(seed)
    for step in range(steps):
        chosen = np.sort(rng.choice(rows, size=1 + (7 * step) % 25, replace=False))
        gradients = rng.standard_normal((len(chosen), dim)) * 10.0 ** rng.integers(-6, 2, (len(chosen), 1))
        yield chosen, gradients.astype(np.float32), 0.01 * (1 - step / (2 * steps))
