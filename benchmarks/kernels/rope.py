"""Rows of `rope`: the queries' heads, and the part of keys that all heads share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.kernels.case import Case, nbytes
from kernels.rope import rope, rope_

HEADS = {"shipped model": (4, 16), "V2-Lite": (16, 64), "V3": (128, 64), "V3 keys": (1, 64)}


def _case(model: str, tokens: int, function: Callable[..., Tensor] = rope, gradient: tuple[int, ...] = ()) -> Case:
    heads, dim = HEADS[model]

    def make(device: torch.device, count: int) -> tuple[Tensor, ...]:
        query = torch.randn(count, heads, dim, device=device, dtype=torch.bfloat16)
        angles = torch.randn(count, dim // 2, device=device)
        return query, angles.cos(), angles.sin()

    moved = _moved_backward if gradient else None
    return Case(function.__name__, f"{model} {heads} x {dim}", function, make, tokens, gradient, moved=moved)


def _moved_backward(arguments: tuple[Tensor, ...], results: tuple[Tensor, ...]) -> int:
    """Angles and gradients; the backward pass does not read the rotated values."""
    return nbytes(*arguments[1:], *results)


CASES = (
    *(_case(model, 8192) for model in HEADS),
    _case("V3", 64),
    _case("V3", 8192, gradient=(0,)),
    *(_case(model, 8192, rope_) for model in ("V2-Lite", "V3")),
)
