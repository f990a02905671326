"""Routing against a plain loop in float64: who is chosen, with what weight, and in what order."""

from __future__ import annotations

import pytest
import torch

from kernels.moe_route import moe_route
from kernels.routing import RouteRule

RULES = {
    "V3": (256, RouteRule(top=8, groups=8, top_groups=4, scaling=2.5)),
    "shipped": (8, RouteRule(top=2)),
    "unnormalised": (12, RouteRule(top=3, groups=3, top_groups=2, normalise=False, scaling=1.5)),
    "groups of one": (5, RouteRule(top=2, groups=5, top_groups=3)),
    "one expert": (1, RouteRule(top=1)),
}
TOKENS = [1, 5, 17, 123]

pytestmark = pytest.mark.usefixtures("implementation")


@pytest.fixture(params=RULES)
def case(request):
    return RULES[request.param]


def best(scores, among, count):
    """The places of the highest, lowest place first among equals."""
    return sorted(among, key=lambda place: (-scores[place], place))[:count]


def chosen_in_a_loop(scores, rule):
    """Experts of one token; `scores` are biased."""
    size = len(scores) // rule.groups
    members = [range(g * size, (g + 1) * size) for g in range(rule.groups)]
    strength = [sum(sorted((scores[e] for e in group), reverse=True)[:2]) for group in members]
    kept = best(strength, range(rule.groups), rule.top_groups)
    return best(scores, [e for g in kept for e in members[g]], rule.top)


def weights_by_formula(logits, experts, rule):
    scores = logits.double().sigmoid().gather(1, experts)
    return rule.scaling * (scores / scores.sum(-1, keepdim=True) if rule.normalise else scores)


@pytest.mark.parametrize("tokens", TOKENS)
def test_experts_and_weights_are_those_of_the_loop(randn, assert_near, case, tokens):
    experts, rule = case
    logits, bias = randn(tokens, experts), randn(experts)
    routing = moe_route(logits, bias, rule)
    scores = (logits.double().sigmoid() + bias.double()).tolist()
    assert routing.experts.tolist() == [chosen_in_a_loop(row, rule) for row in scores]
    assert_near(routing.weights, weights_by_formula(logits, routing.experts, rule))


def test_the_lowest_wins_among_equals(randn, case):
    experts, rule = case
    logits, bias = 200 * randn(123, experts).round().clamp(-1, 1), randn(experts).round() / 2
    scores = (logits.sign() + 1) / 2 + bias  # sigmoid(200) is 1 in single precision, and sums of halves are exact
    routing = moe_route(logits, bias, rule)
    assert routing.experts.tolist() == [chosen_in_a_loop(row, rule) for row in scores.tolist()]


@pytest.mark.parametrize("tokens", [*TOKENS, 1025])
def test_pairs_are_sorted_by_expert_and_within_one_by_token(randn, tokens):
    logits = randn(tokens, 5) + torch.tensor([0.0, 9, 0, -9, 0], device=randn(1).device)  # crowded and empty experts
    routing = moe_route(logits, torch.zeros_like(logits[0]), RouteRule(top=2))
    flat = routing.experts.flatten().tolist()
    order = sorted(range(len(flat)), key=lambda pair: flat[pair])
    assert routing.order.tolist() == order
    assert routing.counts.tolist() == [flat.count(expert) for expert in range(5)]
    assert routing.order[routing.position].flatten().tolist() == list(range(len(flat)))


def test_many_blocks_of_tokens_are_counted_together(randn):
    logits = randn(16 * 33, 3)
    routing = moe_route(logits, torch.zeros_like(logits[0]), RouteRule(top=1))
    assert routing.order.tolist() == routing.experts.flatten().argsort(stable=True).tolist()


def test_half_precision_logits_are_scored_in_single(randn, assert_near):
    logits, rule = randn(17, 8, dtype=torch.bfloat16), RouteRule(top=2)
    routing = moe_route(logits, torch.zeros_like(logits[0]), rule)
    assert routing.weights.dtype == torch.float32
    assert_near(routing.weights, weights_by_formula(logits, routing.experts, rule))


@pytest.mark.parametrize("tokens", [1, 17])
def test_gradients_are_those_of_the_formula(randn, assert_near, gradients, case, tokens):
    experts, rule = case
    logits, bias = randn(tokens, experts), randn(experts)
    chosen = moe_route(logits, bias, rule).experts
    (got,) = gradients(lambda x: moe_route(x, bias, rule).weights, logits)
    (wanted,) = gradients(lambda x: weights_by_formula(x, chosen, rule).float(), logits)
    assert_near(got, wanted)
