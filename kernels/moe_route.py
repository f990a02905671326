"""Routing: the experts of each token, their weights, and an order that groups tokens by expert."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.dispatch import use_triton
from kernels.routing import RouteRule, Routing


def moe_route(logits: Tensor, bias: Tensor, rule: RouteRule) -> Routing:
    """Route tokens as DeepSeek-V3 does (arXiv 2412.19437, section 2.1.2). Differentiable in `logits`.

    Scores are sigmoid(logits) in fp32. The bias affects the choice but not the weights. Among equal experts or groups
    the lowest index wins.

    Args:
        logits: [T, E].
        bias: [E], the correction added to the scores for the choice alone.
        rule: how experts are chosen; `groups` divides E, and `top_groups` of them hold `top` experts or more.
    """
    if use_triton(logits, bias):
        from kernels.gpu.moe_route import MoeRoute

        return Routing(*MoeRoute.apply(logits, bias, rule))
    scores = logits.float().sigmoid()
    experts = _best(_eligible(scores.detach() + bias, rule), rule.top)
    weights = scores.gather(1, experts)
    if rule.normalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    flat = experts.flatten()
    order = flat.argsort(stable=True)
    position = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    counts = torch.bincount(flat, minlength=logits.shape[1])
    return Routing(weights * rule.scaling, experts, counts, order, position.view_as(experts))


def _best(scores: Tensor, count: int) -> Tensor:
    """Return the places of the `count` highest in the last dimension, the lowest place first among equals.

    Not `topk`, which leaves the order of equals to the device.
    """
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def _eligible(scores: Tensor, rule: RouteRule) -> Tensor:
    """Rule out experts beyond the best groups, a group being as good as its two best experts together."""
    if rule.top_groups == rule.groups:
        return scores
    grouped = scores.unflatten(-1, (rule.groups, -1))
    strength = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
    out = torch.ones_like(strength, dtype=torch.bool).scatter_(1, _best(strength, rule.top_groups), False)
    return grouped.masked_fill(out[..., None], float("-inf")).flatten(-2)
