"""The gate against its formula in float64, alone and added to the hidden state."""

from __future__ import annotations

import pytest
import torch

from kernels.engram_fuse import engram_fuse, engram_gate

EPS = 1e-6
SHAPES = [(0, 2, 8), (1, 1, 1), (5, 4, 17), (17, 1, 123), (123, 4, 64), (1025, 2, 5), (2, 2, 1025)]

pytestmark = pytest.mark.usefixtures("implementation", "few_strips")


def formula(h, keys, value, q_weight, k_weight, gate, kept=None):
    h, keys, value, q_weight, k_weight = (x.double() for x in (h, keys, value, q_weight, k_weight))
    norm = [x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) for x in (h, keys)]
    s = (norm[0] * q_weight * norm[1] * k_weight).sum(-1) / h.shape[-1] ** 0.5
    s = s.sign() * s.abs().clamp_min(1e-6).sqrt() if gate == "sqrt" else s
    y = s.sigmoid()[..., None] * value[:, None]
    return y if kept is None else y * kept[:, None, None]


@pytest.fixture
def inputs(randn):
    def draw(tokens, streams, dim, dtype=torch.float32):
        shapes = ((tokens, streams, dim), (tokens, streams, dim), (tokens, dim), (streams, dim), (streams, dim))
        return [randn(*shape, dtype=dtype) for shape in shapes]

    return draw


@pytest.mark.parametrize("gate", ["sqrt", "sigmoid"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gate_is_its_formula(inputs, assert_near, gate, shape):
    tensors = inputs(*shape)
    out = engram_gate(*tensors, gate, EPS)
    assert out.shape == shape
    assert_near(out, formula(*tensors, gate))
    assert_near(engram_fuse(*tensors, gate, EPS), tensors[0].double() + formula(*tensors, gate))


@pytest.mark.parametrize("gate", ["sqrt", "sigmoid"])
@pytest.mark.parametrize("scale", [1e-4, 30.0])
def test_small_and_large_inputs_keep_their_precision(inputs, gate, scale):
    h, keys, value, *weights = inputs(9, 2, 32)
    tensors = [scale * h, scale * keys, scale * value, *weights]
    torch.testing.assert_close(engram_gate(*tensors, gate, EPS).double(), formula(*tensors, gate), atol=0, rtol=1e-4)


def test_half_precision_is_computed_in_single(inputs, assert_near):
    tensors = inputs(33, 2, 64, torch.bfloat16)
    out = engram_gate(*tensors, "sqrt", EPS)
    assert out.dtype == torch.bfloat16
    assert_near(out, formula(*tensors, "sqrt"), scale=0)  # one rounding, at the end
    assert_near(engram_fuse(*tensors, "sqrt", EPS), tensors[0].double() + formula(*tensors, "sqrt"), scale=2)


def test_no_agreement_opens_the_gate_by_half(inputs):
    h, keys, value, q_weight, k_weight = inputs(3, 1, 8)
    out = engram_gate(torch.zeros_like(h), keys, value, q_weight, k_weight, "sqrt", EPS)
    torch.testing.assert_close(out[:, 0], value / 2)


def test_masked_positions_keep_their_hidden_state(inputs, assert_near, device):
    tensors = inputs(123, 2, 17)
    kept = (torch.arange(246, device=device) % 3 > 0)[::2]  # every other value of a tensor is a mask too
    assert_near(engram_gate(*tensors, "sqrt", EPS, kept), formula(*tensors, "sqrt", kept))
    assert torch.equal(engram_fuse(*tensors, "sqrt", EPS, kept)[~kept], tensors[0][~kept])


def test_keys_and_value_are_read_where_one_projection_left_them(inputs, randn, assert_near):
    h, _, _, *weights = inputs(17, 2, 24)
    keys, value = randn(17, 3, 24).split((2, 1), dim=1)
    assert_near(
        engram_gate(h, keys, value[:, 0], *weights, "sqrt", EPS), formula(h, keys, value[:, 0], *weights, "sqrt")
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("gate", ["sqrt", "sigmoid"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 2, 17), (300, 3, 40)])
def test_gradients_are_those_of_the_formula(inputs, gradients, assert_near, device, gate, shape, masked):
    tensors = inputs(*shape)
    kept = torch.arange(shape[0], device=device) % 3 > 0 if masked else None
    in_double = [tensor.double() for tensor in tensors]
    scale = 10 * shape[0] ** 0.5
    wanted = gradients(lambda *x: formula(*x, gate, kept), *in_double)
    for got, one in zip(gradients(lambda *x: engram_gate(*x, gate, EPS, kept), *tensors), wanted, strict=True):
        assert_near(got, one, scale=scale)
    wanted = gradients(lambda h, *x: h + formula(h, *x, gate, kept), *in_double)
    for got, one in zip(gradients(lambda *x: engram_fuse(*x, gate, EPS, kept), *tensors), wanted, strict=True):
        assert_near(got, one, scale=scale)


def test_gradients_in_half_precision_are_those_of_the_formula(inputs, gradients, assert_near):
    tensors = inputs(33, 2, 64, torch.bfloat16)
    wanted = gradients(lambda *x: formula(*x, "sqrt"), *(tensor.double() for tensor in tensors))
    for got, one in zip(gradients(lambda *x: engram_gate(*x, "sqrt", EPS), *tensors), wanted, strict=True):
        assert got.dtype == torch.bfloat16
        assert_near(got, one, scale=one.abs().max().item())


def test_an_unknown_gate_is_refused(inputs):
    for function in (engram_gate, engram_fuse):
        with pytest.raises(ValueError, match="gate: 'relu' is unknown; use sqrt or sigmoid"):
            function(*inputs(1, 1, 4), "relu", EPS)
