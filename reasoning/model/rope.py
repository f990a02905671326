"""Angles of the rotary position embedding, with YaRN (arXiv 2309.00071)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reasoning.config.rope import RopeConfig


def magnitude(factor: float, mscale: float) -> float:
    """Return YaRN's attention temperature for a context extended by `factor`."""
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def softmax_scale(head_dim: int, rope: RopeConfig) -> float:
    """Return 1/sqrt(head_dim), times the squared magnitude of `mscale_all_dim` for an extended context."""
    return head_dim**-0.5 * magnitude(rope.factor, rope.mscale_all_dim) ** 2


class Rotations:
    """Computes the cosines and sines of a batch's positions."""

    def __init__(self, rope: RopeConfig, dim: int):
        """Prepare rotations of `dim` values of a query or key."""
        self._frequencies = _inverse_frequencies(rope, dim)
        self._scale = _cos_sin_scale(rope)

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin of positions [T] int64, each [T, dim / 2] in fp32, on their device."""
        if self._frequencies.device != positions.device:  # once: a copy could not be recorded in a CUDA graph
            self._frequencies = self._frequencies.to(positions.device)
        angles = positions.float()[:, None] * self._frequencies[None, :]
        return angles.cos() * self._scale, angles.sin() * self._scale


def _cos_sin_scale(rope: RopeConfig) -> float:
    if rope.mscale and rope.mscale_all_dim:
        return magnitude(rope.factor, rope.mscale) / magnitude(rope.factor, rope.mscale_all_dim)
    return magnitude(rope.factor, 1.0)


def _inverse_frequencies(rope: RopeConfig, dim: int) -> Tensor:
    """Return [dim / 2] in fp32 on the CPU, even if torch's default device is the meta device."""
    frequencies = 1.0 / rope.theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim)
    if rope.factor <= 1.0:
        return frequencies
    low = min(max(math.floor(_dimension_of(rope.beta_fast, rope, dim)), 0), dim - 1)
    high = min(math.ceil(_dimension_of(rope.beta_slow, rope, dim)), dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / max(high - low, 0.001)
    interpolated = ramp.clamp(0, 1)
    return frequencies / rope.factor * interpolated + frequencies * (1 - interpolated)


def _dimension_of(rotations: float, rope: RopeConfig, dim: int) -> float:
    """Return the (fractional) dimension that rotates `rotations` times over the original context."""
    wavelengths = rope.original_max_position_embeddings / (rotations * 2 * math.pi)
    return dim * math.log(wavelengths) / (2 * math.log(rope.theta))
