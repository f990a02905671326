"""Rows of `engram_conv`: four taps, three positions apart, over sequences of 1024 tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.kernels.case import Case, nbytes
from kernels.engram_conv import engram_conv

STREAMS = {"shipped model": (1, 256), "paper 27B": (1, 2560), "four streams": (4, 2560)}
TAPS, DILATION, LENGTH = 4, 3, 1024


def _case(model: str, tokens: int, gradient: tuple[int, ...] = (), masked: bool = False) -> Case:
    streams, hidden = STREAMS[model]

    def make(device: torch.device, count: int) -> tuple[Tensor | None, ...]:
        h, y = (torch.randn(count, streams, hidden, device=device, dtype=torch.bfloat16) for _ in range(2))
        seen = torch.randn(count, streams * hidden, device=device, dtype=torch.bfloat16)
        weight = torch.randn(streams * hidden, TAPS, device=device, dtype=torch.bfloat16)
        kept = torch.arange(count, device=device) % 8 > 0 if masked else None
        return h, y, seen, _sources(count, device), weight, kept

    shape = f"{model} {streams} x {hidden}{', an eighth masked' if masked else ''}"
    moved = _moved_backward if gradient else None
    return Case("engram_conv", shape, engram_conv, make, tokens, gradient, moved=moved)


def _moved_backward(arguments: tuple[Tensor | None, ...], results: tuple[Tensor, ...]) -> int:
    """All but h and y, which no gradient depends on, and h's gradient, which is the incoming one."""
    return nbytes(*arguments[2:], *results[1:])


def _sources(tokens: int, device: torch.device) -> Tensor:
    token, back = torch.arange(tokens, device=device)[:, None], DILATION * torch.arange(TAPS - 1, -1, -1, device=device)
    return torch.where(token % LENGTH >= back, token - back, -1)


CASES = (
    *(_case(model, 8192) for model in STREAMS),
    _case("paper 27B", 64),
    _case("paper 27B", 8192, masked=True),
    *(_case(model, 8192, gradient=(0, 1, 2, 4)) for model in ("shipped model", "paper 27B")),
    _case("paper 27B", 8192, gradient=(0, 1, 2, 4), masked=True),
)
