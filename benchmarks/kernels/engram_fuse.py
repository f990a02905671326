"""Rows of `engram_fuse` and, where a convolution follows, `engram_gate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.case import Case
from kernels.engram_fuse import engram_fuse, engram_gate

STREAMS = {"shipped model": (1, 256), "paper 27B": (1, 2560), "V4.1": (4, 5120)}
"""Hidden streams and their width."""


def _case(
    model: str,
    tokens: int,
    function: Callable[..., Tensor] = engram_fuse,
    gradient: tuple[int, ...] = (),
    masked: bool = False,
) -> Case:
    streams, hidden = STREAMS[model]

    def make(device: torch.device, count: int) -> tuple[Any, ...]:
        h, projection = (
            torch.randn(count, n, hidden, device=device, dtype=torch.bfloat16) for n in (streams, streams + 1)
        )
        keys, value = projection.split((streams, 1), dim=1)
        weights = (torch.randn(streams, hidden, device=device, dtype=torch.bfloat16) for _ in range(2))
        kept = torch.arange(count, device=device) % 8 > 0 if masked else None
        return h, keys.detach(), value[:, 0].detach(), *weights, "sqrt", 1e-6, kept

    shape = f"{model} {streams} x {hidden}{', an eighth masked' if masked else ''}"
    return Case(function.__name__, shape, function, make, tokens, gradient)


CASES = (
    *(_case(model, 8192) for model in STREAMS),
    _case("V4.1", 64),
    _case("V4.1", 8192, masked=True),
    *(_case(model, 8192, engram_gate) for model in STREAMS if STREAMS[model][0] == 1),
    *(_case(model, 8192, gradient=(0, 1, 2, 3, 4)) for model in STREAMS),
    _case("shipped model", 8192, gradient=(0, 1, 2, 3, 4), masked=True),
)
