"""Optimizers of the backbone: AdamW, or Muon for matrices and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from reasoning.training.config import TrainingConfig

_BETAS = (0.9, 0.95)


class BackboneOptimizer:
    """The optimizers of all parameters together, under one learning rate."""

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], config: TrainingConfig) -> None:
        """Make optimizers for parameters that take gradients, given with their names."""
        named = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        by_muon = [p for name, p in named if config.optimizer == "muon" and _is_hidden_matrix(name, p)]
        chosen = {id(p) for p in by_muon}
        rest = [(name, p) for name, p in named if id(p) not in chosen]
        decayed = [p for name, p in rest if _decays(name, p)]
        spared = [p for name, p in rest if not _decays(name, p)]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}]
        rate = config.learning_rate
        self._stacks = _Stacks(by_muon)
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW([group for group in groups if group["params"]], lr=rate, betas=_BETAS, fused=True)
        ]
        """The optimizers, AdamW first."""
        if by_muon:
            self.optimizers.append(
                torch.optim.Muon(
                    self._stacks.matrices, lr=rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
                )
            )

    def step(self, rate: float) -> None:
        """Apply the gradients at a learning rate, and forget them."""
        self._stacks.share_gradients()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        self._stacks.forget_gradients()

    def tensors(self) -> Iterator[tuple[str, nn.Parameter, dict[str, Tensor]]]:
        """Yield each parameter's state, with a name that the same model always gives it."""
        for number, optimizer in enumerate(self.optimizers):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for index, parameter in enumerate(parameters):
                yield f"{number}.{index}", parameter, optimizer.state[parameter]


class _Stacks:
    """Matrices for Muon, which takes two dimensions only: of a stack, such as all experts, each matrix by itself.

    The matrices are parameters that share memory with the stack, so an update of one is an update of the other.
    """

    def __init__(self, stacks: Sequence[nn.Parameter]) -> None:
        self._parts = [(stack, [nn.Parameter(part) for part in _matrices(stack.data)]) for stack in stacks]

    @property
    def matrices(self) -> list[nn.Parameter]:
        return [part for _, parts in self._parts for part in parts]

    def share_gradients(self) -> None:
        for stack, parts in self._parts:
            if stack.grad is not None:
                for part, gradient in zip(parts, _matrices(stack.grad), strict=True):
                    part.grad = gradient

    def forget_gradients(self) -> None:
        for stack, _ in self._parts:
            stack.grad = None


def _matrices(tensor: Tensor) -> Sequence[Tensor]:
    return tensor.flatten(0, -3).unbind() if tensor.ndim > 2 else [tensor]


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether it is a matrix: the weights of a convolution and of a gate are a vector for each channel."""
    return parameter.ndim > 1 and "engram.conv" not in name and "_weight" not in name


def _is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon takes it: not embedding, head and routers, as is usual (Jordan and others, 2024)."""
    return _decays(name, parameter) and not any(part in name for part in ("embed_tokens", "lm_head", "mlp.gate."))
