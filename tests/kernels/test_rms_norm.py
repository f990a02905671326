"""Normalisation, with and without a residual, against its formula in float64."""

from __future__ import annotations

import pytest
import torch

from kernels.rms_norm import add_rms_norm, rms_norm

EPS = 1e-6
SHAPES = [(1, 1), (5, 17), (17, 123), (123, 5), (1025, 17), (3, 1025)]
DTYPES = [torch.float32, torch.bfloat16]

pytestmark = pytest.mark.usefixtures("implementation", "few_strips")


def formula(x, weight):
    x = x.double()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight.double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_normalised_as_the_formula_says(randn, assert_near, shape, dtype):
    x, weight = randn(*shape, dtype=dtype), randn(shape[-1])
    out = rms_norm(x, weight.to(dtype), EPS)
    assert (out.dtype, out.shape) == (dtype, x.shape)
    assert_near(out, formula(x, weight.to(dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("streams", [1, 3])
def test_streams_have_weights_of_their_own(randn, assert_near, streams, dtype):
    x, weight = randn(17, streams, 40, dtype=dtype), randn(streams, 40, dtype=dtype)
    assert_near(rms_norm(x, weight, EPS), formula(x, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_sum_is_rounded_and_then_normalised(randn, assert_near, shape, dtype):
    x, residual, weight = randn(*shape, dtype=dtype), randn(*shape, dtype=dtype), randn(shape[-1], dtype=dtype)
    out, total = add_rms_norm(x, residual, weight, EPS)
    assert_near(total, x.double() + residual.double())
    assert_near(out, formula(total, weight))


def test_part_of_wider_rows_is_normalised_where_it_lies(randn, assert_near):
    wide, weight = randn(17, 60), randn(40)
    assert_near(rms_norm(wide[:, 5:45], weight, EPS), formula(wide[:, 5:45], weight))
    assert_near(rms_norm(wide.T[:40].T, weight, EPS), formula(wide[:, :40], weight))
    assert_near(rms_norm(wide[:, :17].T[:, :17], weight[:17], EPS), formula(wide[:, :17].T, weight[:17]))


def test_no_rows_give_no_rows(randn):
    assert rms_norm(randn(0, 8), randn(8), EPS).shape == (0, 8)
    assert add_rms_norm(randn(0, 8), randn(0, 8), randn(8), EPS)[1].shape == (0, 8)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_small_and_large_rows_keep_their_precision(randn, assert_near, scale):
    x, weight = scale * randn(5, 64), randn(64)
    assert_near(rms_norm(x, weight, EPS), formula(x, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 17), (17, 123), (1025, 5)])
def test_gradients_are_those_of_the_formula(randn, assert_near, gradients, shape, dtype):
    x, weight = randn(*shape, dtype=dtype), randn(shape[-1], dtype=dtype)
    wanted = gradients(formula, x.double(), weight.double())
    for got, one in zip(gradients(lambda x, w: rms_norm(x, w, EPS), x, weight), wanted, strict=True):
        assert got.dtype == dtype
        assert_near(got, one, scale=4 * shape[0] ** 0.5)


@pytest.mark.parametrize("shape", [(5, 17), (300, 40)])
def test_gradients_through_the_sum_reach_both_terms(randn, assert_near, gradients, shape):
    x, residual, weight = randn(*shape), randn(*shape), randn(shape[-1])
    wanted = gradients(lambda x, r, w: (formula(x + r, w), x + r), x.double(), residual.double(), weight.double())
    for got, one in zip(
        gradients(lambda x, r, w: add_rms_norm(x, r, w, EPS), x, residual, weight), wanted, strict=True
    ):
        assert_near(got, one, scale=4 * shape[0] ** 0.5)


def test_gradients_of_several_streams_are_those_of_the_formula(randn, assert_near, gradients):
    x, weight = randn(17, 3, 40), randn(3, 40)
    wanted = gradients(formula, x.double(), weight.double())
    for got, one in zip(gradients(lambda x, w: rms_norm(x, w, EPS), x, weight), wanted, strict=True):
        assert_near(got, one, scale=20)
