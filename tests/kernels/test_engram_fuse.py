"""The gate against its formula in float64."""

import numpy as np
import pytest
import torch

from kernels.engram_fuse import engram_gate

EPS = 1e-6


def rms(x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS)


def formula(h, keys, value, q_weight, k_weight, gate):
    s = (rms(h) * q_weight * rms(keys) * k_weight).sum(-1) / np.sqrt(h.shape[-1])
    if gate == "sqrt":
        s = np.sign(s) * np.sqrt(np.maximum(np.abs(s), 1e-6))
    return (1 / (1 + np.exp(-s)))[..., None] * value[:, None]


def inputs(tokens, streams, dim):
    generator = torch.Generator().manual_seed(tokens * 100 + dim)
    shapes = ((tokens, streams, dim), (tokens, streams, dim), (tokens, dim), (streams, dim), (streams, dim))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def expected(tensors, gate):
    return torch.from_numpy(formula(*(tensor.double().numpy() for tensor in tensors), gate))


@pytest.mark.parametrize("gate", ["sqrt", "sigmoid"])
@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize(("tokens", "dim"), [(0, 8), (1, 1), (5, 17), (17, 123), (123, 64)])
def test_the_gate_is_its_formula(gate, streams, tokens, dim):
    tensors = inputs(tokens, streams, dim)
    out = engram_gate(*tensors, gate, EPS)
    assert out.shape == (tokens, streams, dim)
    torch.testing.assert_close(out.double(), expected(tensors, gate), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("gate", ["sqrt", "sigmoid"])
@pytest.mark.parametrize("scale", [1e-4, 30.0])
def test_small_and_large_inputs_keep_their_precision(gate, scale):
    h, keys, value, *weights = inputs(9, 2, 32)
    tensors = [scale * h, scale * keys, scale * value, *weights]
    torch.testing.assert_close(engram_gate(*tensors, gate, EPS).double(), expected(tensors, gate), atol=0, rtol=1e-4)


def test_half_precision_is_computed_in_single():
    tensors = [tensor.bfloat16() for tensor in inputs(33, 2, 64)]
    out = engram_gate(*tensors, "sqrt", EPS)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), expected(tensors, "sqrt"), atol=0, rtol=2**-8)  # one rounding, at the end


def test_no_agreement_opens_the_gate_by_half():
    h, keys, value, q_weight, k_weight = inputs(3, 1, 8)
    out = engram_gate(torch.zeros_like(h), keys, value, q_weight, k_weight, "sqrt", EPS)
    torch.testing.assert_close(out[:, 0], value / 2)


@pytest.mark.parametrize("gate", ["sqrt", "sigmoid"])
def test_gradients_are_those_of_the_formula(gate):
    tensors = [tensor.double().requires_grad_() for tensor in inputs(3, 2, 5)]

    def in_double(h, keys, value, q_weight, k_weight):
        norm = [x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) for x in (h, keys)]
        s = (norm[0] * q_weight * norm[1] * k_weight).sum(-1) / 5**0.5
        s = s.sign() * s.abs().clamp_min(1e-6).sqrt() if gate == "sqrt" else s
        return s.sigmoid()[..., None] * value[:, None]

    got = torch.autograd.grad(engram_gate(*tensors, gate, EPS).square().sum(), tensors)
    wanted = torch.autograd.grad(in_double(*tensors).square().sum(), tensors)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_an_unknown_gate_is_refused():
    with pytest.raises(ValueError, match="gate: 'relu' is unknown; use sqrt or sigmoid"):
        engram_gate(*inputs(1, 1, 4), "relu", EPS)
