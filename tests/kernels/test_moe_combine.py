"""Adding up what a token's experts return, against the formula in float64."""

from __future__ import annotations

import pytest
import torch

from kernels.moe_combine import moe_combine
from kernels.moe_route import moe_route
from kernels.routing import RouteRule

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(1, 1, 1), (5, 2, 17), (17, 3, 123), (123, 2, 5), (3, 2, 1025)]  # tokens, top, size

pytestmark = pytest.mark.usefixtures("implementation")


@pytest.fixture(params=SHAPES, ids=str)
def shape(request):
    return request.param


def routed(logits, top):
    return moe_route(logits, torch.zeros_like(logits[0]), RouteRule(top))


def formula(visits, routing):
    return (routing.weights.double()[..., None] * visits.double()[routing.position]).sum(1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_visits_are_added_up_by_weight(randn, assert_near, shape, dtype):
    tokens, top, size = shape
    routing, visits = routed(randn(tokens, 4), top), randn(tokens * top, size, dtype=dtype)
    out = moe_combine(visits, routing)
    assert (out.dtype, out.shape) == (dtype, (tokens, size))
    assert_near(out, formula(visits, routing))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_reach_visits_and_through_the_weights_the_logits(randn, assert_near, gradients, shape, dtype):
    tokens, top, size = shape
    logits, visits = randn(tokens, 4), randn(tokens * top, size, dtype=dtype)
    got = gradients(lambda visits, logits: moe_combine(visits, routed(logits, top)), visits, logits)
    wanted = gradients(lambda visits, logits: formula(visits, routed(logits, top)).to(dtype), visits, logits)
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == other.dtype
        assert_near(one, other, scale=size**0.5)
