"""Experts' products against loops in float64: awkward sizes, crowded and empty experts, gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kernels.grouped_gemm import grouped_linear, grouped_swiglu, round_up
from kernels.moe_combine import moe_combine
from kernels.moe_route import moe_route
from kernels.routing import RouteRule

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(1, 3, 1, 17, 5), (5, 2, 2, 16, 32), (17, 5, 3, 123, 17), (123, 4, 2, 40, 24)]  # tokens, E, top, d, width

pytestmark = pytest.mark.usefixtures("implementation")


@pytest.fixture(params=SHAPES, ids=str)
def shape(request):
    return request.param


def crowded(randn, tokens, experts, top):
    """A routing that leaves the second expert empty where it can."""
    logits = randn(tokens, experts)
    logits[:, 1] -= 9
    return moe_route(logits, torch.zeros_like(logits[0]), RouteRule(top))


def linear_in_double(x, weight, counts):
    parts = x.double().split(counts.tolist())
    return torch.cat([part @ weight[e].double().T for e, part in enumerate(parts)])


def swiglu_in_double(x, gate_up, routing):
    rows = x[routing.order // routing.experts.shape[1]]
    gate, up = linear_in_double(rows, gate_up, routing.counts).chunk(2, dim=-1)
    return F.silu(gate) * up


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_row_meets_its_experts_matrix(randn, assert_near, shape, dtype):
    tokens, experts, top, size, width = shape
    counts = crowded(randn, tokens, experts, top).counts
    x, weight = randn(tokens * top, size, dtype=dtype), randn(experts, width, size, dtype=dtype)
    out = grouped_linear(x, weight, counts)
    assert out.dtype == dtype
    assert_near(out, linear_in_double(x, weight, counts), scale=size**0.5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_pair_passes_its_experts_swiglu(randn, assert_near, shape, dtype):
    tokens, experts, top, size, width = shape
    routing = crowded(randn, tokens, experts, top)
    x, gate_up = randn(tokens, size, dtype=dtype), randn(experts, 2 * width, size, dtype=dtype) / size**0.5
    out = grouped_swiglu(x, gate_up, routing)
    assert out.dtype == dtype
    assert_near(out, swiglu_in_double(x, gate_up, routing), scale=4)


def test_one_expert_with_many_rows_and_many_without(randn, assert_near):
    counts = torch.zeros(9, dtype=torch.int64)
    counts[4] = 1025
    x, weight = randn(1025, 17), randn(9, 5, 17)
    assert_near(grouped_linear(x, weight, counts.to(x.device)), x.double() @ weight[4].double().T, scale=17**0.5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_the_linear_layer_are_those_of_the_formula(randn, assert_near, gradients, shape, dtype):
    tokens, experts, top, size, width = shape
    counts = crowded(randn, tokens, experts, top).counts
    x, weight = randn(tokens * top, size, dtype=dtype), randn(experts, width, size, dtype=dtype)
    wanted = gradients(lambda x, w: linear_in_double(x, w, counts), x.double(), weight.double())
    for got, one in zip(gradients(lambda x, w: grouped_linear(x, w, counts), x, weight), wanted, strict=True):
        assert got.dtype == dtype
        assert_near(got, one, scale=4 * (tokens + width) ** 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_the_swiglu_are_those_of_the_formula(randn, assert_near, gradients, shape, dtype):
    tokens, experts, top, size, width = shape
    routing = crowded(randn, tokens, experts, top)
    x, gate_up = randn(tokens, size, dtype=dtype), randn(experts, 2 * width, size, dtype=dtype) / size**0.5
    wanted = gradients(lambda x, w: swiglu_in_double(x, w, routing), x.double(), gate_up.double())
    for got, one in zip(gradients(lambda x, w: grouped_swiglu(x, w, routing), x, gate_up), wanted, strict=True):
        assert got.dtype == dtype
        assert_near(got, one, scale=8 * (tokens + width) ** 0.5)


def test_nothing_is_kept_for_gradients_that_nobody_wants(randn, shape):
    tokens, experts, top, size, width = shape
    routing = crowded(randn, tokens, experts, top)
    x, gate_up = randn(tokens, size), randn(experts, 2 * width, size).requires_grad_()
    with torch.no_grad():
        quiet = grouped_swiglu(x, gate_up, routing)
    assert quiet.grad_fn is None
    torch.testing.assert_close(quiet, grouped_swiglu(x, gate_up, routing))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 5, 17, 123, 400])
def test_idle_rows_change_nothing_but_the_number_of_rows(randn, tokens, dtype):
    routing = crowded(randn, tokens, 8, 3)
    rounded = round_up(routing)
    assert set((rounded.counts % 16).tolist()) == {0}
    x, weight = randn(tokens, 24, dtype=dtype), randn(8, 16, 24, dtype=dtype) / 5
    outs = [moe_combine(grouped_linear(x[r.order // 3], weight, r.counts, r.each), r) for r in (routing, rounded)]
    assert torch.equal(*outs) if dtype == torch.bfloat16 else torch.allclose(*outs, atol=1e-6)


@pytest.mark.parametrize(("tokens", "alike"), [(1, False), (17, True), (400, False)])
def test_few_rows_are_rounded_to_one_number_for_all_experts(randn, tokens, alike):
    rounded = round_up(crowded(randn, tokens, 8, 3))
    assert (len(set(rounded.counts.tolist())) == 1) == alike
    assert rounded.each == (int(rounded.counts[0]) if alike else 0)
