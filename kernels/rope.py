"""Rotary position embedding: interleaved pairs in, halves out."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.dispatch import use_triton


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x0, x1), (x2, x3), ... of the last dimension by the angle of each token. Differentiable in x.

    Args:
        x: [T, dim] or [T, heads, dim].
        cos: [T, dim / 2]; with YaRN its magnitude is in cos and sin.
        sin: like `cos`.

    Returns:
        Like `x`, first members of all pairs and then second members: the order is the same for queries and keys, so
        their products do not depend on it.
    """
    if use_triton(x, cos, sin):
        from kernels.gpu.rope import Rope

        return Rope.apply(x, cos, sin)
    return _rotate(x, cos, sin).flatten(-2).to(x.dtype)


def rope_(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rope` in place, for inference: `x` may be part of wider rows, such as `query[..., nope:]`. Returns `x`."""
    if use_triton(x, cos, sin):
        from kernels.gpu.rope import rotate_into

        return rotate_into(x, x, cos, sin)
    x.unflatten(-1, (2, -1)).copy_(_rotate(x, cos, sin))
    return x


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Multiply the pairs as complex numbers, in fp32 at least: [..., dim] -> [..., 2, dim / 2]."""
    dtype = torch.promote_types(cos.dtype, torch.float32)
    pairs = torch.view_as_complex(x.to(dtype).unflatten(-1, (-1, 2)).contiguous())
    turn = torch.complex(cos.to(dtype), sin.to(dtype))
    return torch.view_as_real(pairs * (turn[:, None] if x.ndim == 3 else turn)).transpose(-1, -2)
