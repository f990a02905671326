"""Angles of the rotary position embedding, with YaRN (arXiv 2309.00071)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reasoning.config.rope import RopeConfig


def magnitude(factor: float, mscale: float) -> float:
    """YaRN's attention temperature for a context extended by `factor`."""
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def softmax_scale(head_dim: int, rope: RopeConfig) -> float:
    """Return 1/sqrt(head_dim), times the squared magnitude where `mscale_all_dim` asks for it."""
    return head_dim**-0.5 * magnitude(rope.factor, rope.mscale_all_dim) ** 2


def cos_sin_table(rope: RopeConfig, dim: int, positions: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin, each [positions, dim / 2] in fp32."""
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * _inverse_frequencies(rope, dim)[None, :]
    if rope.mscale and rope.mscale_all_dim:
        scale = magnitude(rope.factor, rope.mscale) / magnitude(rope.factor, rope.mscale_all_dim)
    else:
        scale = magnitude(rope.factor, 1.0)
    return angles.cos() * scale, angles.sin() * scale


def _inverse_frequencies(rope: RopeConfig, dim: int) -> Tensor:
    frequencies = 1.0 / rope.theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if rope.factor <= 1.0:
        return frequencies
    low = max(math.floor(_dimension_of(rope.beta_fast, rope, dim)), 0)
    high = min(math.ceil(_dimension_of(rope.beta_slow, rope, dim)), dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    interpolated = ramp.clamp(0, 1)
    return frequencies / rope.factor * interpolated + frequencies * (1 - interpolated)


def _dimension_of(rotations: float, rope: RopeConfig, dim: int) -> float:
    """Return the (fractional) dimension that turns `rotations` times over the original context."""
    wavelengths = rope.original_max_position_embeddings / (rotations * 2 * math.pi)
    return dim * math.log(wavelengths) / (2 * math.log(rope.theta))
