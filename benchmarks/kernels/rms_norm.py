"""Rows of `rms_norm` and `add_rms_norm`."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.kernels.case import Case, nbytes
from kernels.rms_norm import add_rms_norm, rms_norm

EPS = 1e-6
HIDDEN = {"shipped model": 256, "V2-Lite": 2048, "V3": 7168}


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return rms_norm(x, weight, EPS)


def _add_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return add_rms_norm(x, residual, weight, EPS)


def _case(kernel: str, model: str, tokens: int, gradient: bool = False) -> Case:
    hidden, terms = HIDDEN[model], 2 if kernel == "add_rms_norm" else 1

    def make(device: torch.device, count: int) -> tuple[Tensor, ...]:
        shapes = [(count, hidden)] * terms + [(hidden,)]
        return tuple(torch.randn(shape, device=device, dtype=torch.bfloat16) for shape in shapes)

    return Case(
        kernel,
        f"{model} {hidden}",
        _add_norm if terms == 2 else _norm,
        make,
        tokens,
        tuple(range(terms + 1)) if gradient else (),
        moved=_moved_by_sum_backward if gradient and terms == 2 else None,
    )


def _moved_by_sum_backward(arguments: tuple[Tensor, ...], results: tuple[Tensor, ...]) -> int:
    """The sum instead of its two terms, and one gradient for both."""
    return nbytes(*arguments[1:], *results[1:])


CASES = (
    *(_case("rms_norm", model, tokens) for model in HIDDEN for tokens in (8192, 64)),  # tuned on the first
    _case("rms_norm", "V3", 8192, gradient=True),
    *(_case("add_rms_norm", model, 8192) for model in HIDDEN),
    _case("add_rms_norm", "V3", 8192, gradient=True),
)
