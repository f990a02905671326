"""Cosines and sines of a batch's positions against those of a table over all positions, to the bit."""

from __future__ import annotations

import math

import pytest
import torch

from reasoning.config.rope import RopeConfig
from reasoning.model.rope import Rotations

YARN = RopeConfig(50000.0, 8.0, 64, mscale=1.0, mscale_all_dim=0.7)


def table(rope: RopeConfig, dim: int, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The published formulas (arXiv 2309.00071, sections 3.2 and 3.4) for every position, multiplied in fp32."""
    rows = []
    for i in range(dim // 2):
        frequency = 1 / torch.tensor(rope.theta) ** torch.tensor(2 * i / dim)
        if rope.factor > 1:
            low, high = (
                dim
                * math.log(rope.original_max_position_embeddings / (beta * 2 * math.pi))
                / (2 * math.log(rope.theta))
                for beta in (rope.beta_fast, rope.beta_slow)
            )
            low, high = max(math.floor(low), 0), min(math.ceil(high), dim - 1)
            ramp = torch.tensor(float(i - low)) / (high - low)
            ramp = ramp.clamp(0, 1)
            frequency = frequency / rope.factor * ramp + frequency * (1 - ramp)
        rows.append(torch.arange(positions, dtype=torch.float32) * frequency)
    angles = torch.stack(rows, dim=1)
    numerator, denominator = rope.mscale or 1, rope.mscale_all_dim
    scale = 1.0
    if rope.factor > 1:
        scale = 0.1 * numerator * math.log(rope.factor) + 1
        scale /= 0.1 * denominator * math.log(rope.factor) + 1 if denominator and rope.mscale else 1
    return angles.cos() * scale, angles.sin() * scale


@pytest.mark.parametrize("rope", [RopeConfig(), RopeConfig(1e6), YARN, RopeConfig(10000.0, 40.0)], ids=str)
@pytest.mark.parametrize("dim", [2, 16, 64])
def test_positions_of_any_batch_rotate_as_in_a_table_of_all(rope, dim):
    cos, sin = table(rope, dim, 5000)
    rotations = Rotations(rope, dim)
    everything = rotations(torch.arange(5000))
    torch.testing.assert_close(everything, (cos, sin), atol=2e-3, rtol=0)  # fp32 positions times rounded frequencies
    for count in (1, 2, 3, 7, 8, 31, 700):
        positions = torch.randint(0, 5000, (count,))
        for ours, whole in zip(rotations(positions), everything, strict=True):
            assert ours.dtype == torch.float32
            assert torch.equal(ours, whole[positions])


def test_positions_beyond_any_table_cost_no_memory():
    cos, sin = Rotations(RopeConfig(), 64)(torch.tensor([0, 10**12]))
    assert cos.shape == sin.shape == (2, 32)
    assert (cos.square() + sin.square() - 1).abs().max() < 1e-6
