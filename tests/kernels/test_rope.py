"""Rotation of pairs against complex multiplication in float64."""

from __future__ import annotations

import pytest
import torch

from kernels.rope import rope, rope_
from reasoning.config.rope import RopeConfig
from reasoning.model.rope import Rotations

SHAPES = [(1, 1, 2), (5, 17, 6), (17, 3, 64), (123, 1, 10), (1025, 2, 8), (3, 40, 16)]
PLAIN = RopeConfig()
YARN = RopeConfig(factor=8.0, mscale=1.0, original_max_position_embeddings=512)

pytestmark = pytest.mark.usefixtures("implementation")


def angles(device, tokens, dim, config=PLAIN):
    positions = torch.arange(tokens) * 37 % 4000
    return [values.to(device) for values in Rotations(config, dim)(positions)]


def formula(x, cos, sin):
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    turn = torch.complex(cos.double(), sin.double())
    turned = pairs * (turn[:, None] if x.ndim == 3 else turn)
    return torch.cat((turned.real, turned.imag), -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_pairs_turn_by_their_tokens_angle(randn, assert_near, device, shape, dtype):
    x, turn = randn(*shape, dtype=dtype), angles(device, shape[0], shape[-1])
    out = rope(x, *turn)
    assert (out.dtype, out.shape) == (dtype, x.shape)
    assert_near(out, formula(x, *turn))


def test_rows_without_heads_turn_as_rows_of_one_head(randn, assert_near, device):
    x, turn = randn(17, 8), angles(device, 17, 8)
    assert_near(rope(x, *turn), formula(x, *turn))


def test_yarn_comes_with_the_angles(randn, assert_near, device):
    x, turn = randn(17, 2, 32), angles(device, 17, 32, YARN)
    assert turn[0].abs().max() > 1.1, "YaRN's magnitude is in the table"
    assert_near(rope(x, *turn), formula(x, *turn))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_part_of_wider_rows_turns_in_place(randn, assert_near, device, dtype):
    wide, turn = randn(17, 5, 48, dtype=dtype), angles(device, 17, 16)
    before = wide.clone()
    part = wide[..., 32:]
    assert rope_(part, *turn) is part
    assert_near(part, formula(before[..., 32:], *turn))
    assert torch.equal(wide[..., :32], before[..., :32])


def test_tensors_of_any_memory_layout_are_rotated(randn, assert_near, device):
    x, turn = randn(8, 5, 17).permute(2, 1, 0), angles(device, 17, 8)
    assert_near(rope(x, *turn), formula(x, *turn))


def test_no_tokens_give_an_empty_result(randn, device):
    assert rope(randn(0, 2, 8), *angles(device, 0, 8)).shape == (0, 2, 8)


@pytest.mark.parametrize("config", [PLAIN, YARN], ids=["plain", "yarn"])
@pytest.mark.parametrize("shape", [(1, 1, 2), (17, 3, 6), (123, 8)])
def test_gradients_are_those_of_the_formula(randn, assert_near, gradients, device, shape, config):
    x, turn = randn(*shape), angles(device, shape[0], shape[-1], config)
    [got] = gradients(lambda x: rope(x, *turn), x)
    assert_near(got, gradients(lambda x: formula(x, *turn), x.double())[0])


def test_measuring_configurations_leaves_what_is_rotated_in_place():
    tuned = pytest.importorskip("kernels.gpu.rope").rope_kernel
    assert tuned.restore_value == ["x"]  # measuring runs the kernel many times over; the interpreter measures nothing
