"""Root-mean-square normalisation, alone or fused with the addition to the residual stream."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import use_triton


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x²) + eps) * weight over the last dimension, statistics in fp32. Differentiable.

    Args:
        x: [..., d], or [..., G, d] where every one of G streams has its own weight.
        weight: [d] or [G, d].
        eps: added to the mean square.

    Returns:
        Like `x`, rounded once.
    """
    if use_triton(x, weight):
        from kernels.gpu.rms_norm import RmsNorm

        return RmsNorm.apply(x, weight, eps)
    if weight.ndim == 1:
        return F.rms_norm(x, weight.shape, weight, eps)
    return (F.rms_norm(x.float(), x.shape[-1:], eps=eps) * weight).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return (rms_norm(x + residual), x + residual). Differentiable.

    Args:
        x: what a layer adds to the residual stream, [..., d].
        residual: like `x`.
        weight: [d].
        eps: added to the mean square.

    Returns:
        Both like `x`; the sum is rounded before it is normalised, so that both use the same number.
    """
    if use_triton(x, residual, weight):
        from kernels.gpu.rms_norm import AddRmsNorm

        return AddRmsNorm.apply(x, residual, weight, eps)
    total = x + residual
    return rms_norm(total, weight, eps), total
