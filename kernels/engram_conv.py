"""The Engram layer's short convolution, over positions that may lie anywhere, such as in pages of a cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import use_triton


def engram_conv(
    h: Tensor, y: Tensor, seen: Tensor, sources: Tensor, weight: Tensor, kept: Tensor | None = None
) -> Tensor:
    """Return h + y + SiLU(conv(seen)): a depthwise causal convolution whose taps read from given rows.

    Differentiable in all but `sources` and `kept`. The gradient in `seen` requires that no row is the source of one tap
    for two positions, which holds where sequences share nothing, as in training.

    Args:
        h: hidden streams, [T, G, d].
        y: output of the gate, [T, G, d].
        seen: the convolution's inputs, rms(y) of these positions and others, [N, G * d].
        sources: row of `seen` that each tap of each position reads, the oldest first, or -1 for one before the
            sequence began; [T, taps] int64.
        weight: [G * d, taps].
        kept: [T] bool; where it is false, h stays as it is. None keeps every position.

    Returns:
        [T, G, d] in the dtype of `h`.
    """
    if use_triton(h, y, seen, sources, weight):
        from kernels.gpu.engram_conv import EngramConv

        return EngramConv.apply(h, y, seen, sources, weight, kept)
    taps = reversed(range(weight.shape[1]))
    mixed = sum((_tap(seen, sources[:, tap]) * weight[:, tap] for tap in taps), start=torch.zeros((), device=h.device))
    added = y + F.silu(mixed).to(y.dtype).view_as(y)
    return h + (added if kept is None else torch.where(kept[:, None, None], added, 0))


def _tap(seen: Tensor, source: Tensor) -> Tensor:
    """Input of one tap, [T, G * d] fp32; zero before the sequence began, whatever unwritten rows hold."""
    return seen.index_select(0, source.clamp_min(0)).masked_fill(source[:, None] < 0, 0.0).float()
