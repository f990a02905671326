"""Triton kernels of `moe_route`: choose experts, count their visits, place the pairs; and the weights' gradient."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.routing import RouteRule

_TOKENS = 16  # tokens a program handles
_BLOCKS = 32  # rows of the histogram that are added up at a time
_LOWEST = tl.constexpr(-(2**63))  # below every rank


@triton.jit
def _rank(score, place, LANES: tl.constexpr):
    """One int64 a score that sorts as the scores do and, among equal scores, puts the lowest place highest."""
    bits = score.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (LANES - 1 - place)


@triton.jit
def _score_of(rank):
    ordered = (rank >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _place_of(rank, LANES: tl.constexpr):
    return LANES - 1 - (rank & 0xFFFFFFFF).to(tl.int32)


@triton.jit
def _within_best_groups(
    rank, expert, SIZE: tl.constexpr, GROUPS: tl.constexpr, GROUP_LANES: tl.constexpr, TOP_GROUPS: tl.constexpr
):
    """`rank` [n, experts] with `_LOWEST` for experts beyond the best groups."""
    group = (expert // SIZE)[None, :]
    slot = tl.arange(0, GROUP_LANES)[None, :]
    strengths = tl.full((rank.shape[0], GROUP_LANES), _LOWEST, tl.int64)
    for g in range(GROUPS):
        members = tl.where(group == g, rank, _LOWEST)
        first = tl.max(members, 1)
        strength = _score_of(first)
        if SIZE > 1:
            strength += _score_of(tl.max(tl.where(members == first[:, None], _LOWEST, members), 1))
        strengths = tl.where(slot == g, _rank(strength, g, GROUP_LANES)[:, None], strengths)
    eligible = tl.full(rank.shape, 0, tl.int1)
    for _ in range(TOP_GROUPS):
        best = tl.max(strengths, 1)
        eligible |= group == _place_of(best, GROUP_LANES)[:, None]
        strengths = tl.where(strengths == best[:, None], _LOWEST, strengths)
    return tl.where(eligible, rank, _LOWEST)


@triton.jit
def choose_kernel(
    logits, bias, weights, experts, histogram, tokens, scaling, EXPERTS: tl.constexpr, LANES: tl.constexpr,
    TOP: tl.constexpr, TOP_LANES: tl.constexpr, GROUPS: tl.constexpr, GROUP_LANES: tl.constexpr,
    TOP_GROUPS: tl.constexpr, NORMALISE: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Weights and experts of a block of tokens, and how often each expert occurs in the block."""
    block = tl.program_id(0).to(tl.int64)
    token = (block * TOKENS + tl.arange(0, TOKENS))[:, None]
    expert = tl.arange(0, LANES)
    known = expert < EXPERTS
    inside = (token < tokens) & known[None, :]
    score = tl.sigmoid(tl.load(logits + token * EXPERTS + expert[None, :], mask=inside, other=0.0).to(tl.float32))
    biased = score + tl.load(bias + expert, mask=known, other=0.0)[None, :]
    rank = tl.where(inside, _rank(biased, expert[None, :], LANES), _LOWEST)
    if TOP_GROUPS < GROUPS:
        rank = _within_best_groups(rank, expert, EXPERTS // GROUPS, GROUPS, GROUP_LANES, TOP_GROUPS)
    choice = tl.arange(0, TOP_LANES)[None, :]
    chosen = tl.zeros((TOKENS, TOP_LANES), tl.int32)
    weight = tl.zeros((TOKENS, TOP_LANES), tl.float32)
    taken = tl.full((TOKENS, LANES), 0, tl.int1)
    for k in range(TOP):
        best = tl.max(rank, 1)[:, None]
        hit = (rank == best) & inside
        rank = tl.where(hit, _LOWEST, rank)
        chosen = tl.where(choice == k, _place_of(best, LANES), chosen)
        weight = tl.where(choice == k, tl.sum(tl.where(hit, score, 0.0), 1)[:, None], weight)
        taken |= hit
    if NORMALISE:
        weight = weight / (tl.sum(weight, 1)[:, None] + 1e-20)
    stored = (token < tokens) & (choice < TOP)
    tl.store(weights + token * TOP + choice, weight * scaling, mask=stored)
    tl.store(experts + token * TOP + choice, chosen.to(tl.int64), mask=stored)
    tl.store(histogram + block * EXPERTS + expert, tl.sum(taken.to(tl.int32), 0), mask=known)


@triton.jit
def count_kernel(histogram, first, counts, blocks, EXPERTS: tl.constexpr, LANES: tl.constexpr, BLOCKS: tl.constexpr):
    """From visits by block and expert: each expert's visits, and the first position of each block's share of them."""
    expert = tl.arange(0, LANES)
    known = (expert < EXPERTS)[None, :]
    row = tl.arange(0, BLOCKS)[:, None]
    total = tl.zeros((LANES,), tl.int32)
    for start in range(0, blocks, BLOCKS):
        at = (start + row).to(tl.int64) * EXPERTS + expert[None, :]
        total += tl.sum(tl.load(histogram + at, mask=known & (start + row < blocks), other=0), 0)
    tl.store(counts + expert, total.to(tl.int64), mask=expert < EXPERTS)
    position = tl.cumsum(total, 0) - total
    for start in range(0, blocks, BLOCKS):
        at = (start + row).to(tl.int64) * EXPERTS + expert[None, :]
        inside = known & (start + row < blocks)
        visits = tl.load(histogram + at, mask=inside, other=0)
        tl.store(first + at, position[None, :] + tl.cumsum(visits, 0) - visits, mask=inside)
        position += tl.sum(visits, 0)


@triton.jit
def place_kernel(
    experts, first, order, position, pairs, EXPERTS: tl.constexpr, PAIRS: tl.constexpr, LANES: tl.constexpr
):
    """Give every pair of a block its position: behind the earlier pairs of its expert."""
    block = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    pair = block * PAIRS + lane
    inside = (lane < PAIRS) & (pair < pairs)
    expert = tl.load(experts + pair, mask=inside, other=-1)
    earlier = (expert[:, None] == expert[None, :]) & (lane[None, :] < lane[:, None])
    at = tl.load(first + block * EXPERTS + expert, mask=inside, other=0) + tl.sum(earlier.to(tl.int32), 1)
    tl.store(order + at, pair, mask=inside)
    tl.store(position + pair, at.to(tl.int64), mask=inside)


@triton.jit
def backward_kernel(
    grad, logits, experts, grad_logits, tokens, scaling, EXPERTS: tl.constexpr, TOP: tl.constexpr,
    TOP_LANES: tl.constexpr, NORMALISE: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """With w = c s / S and s = sigmoid(l): dl = c / S (g - <g, s> / S) s (1 - s), at the experts chosen."""
    token = (tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS))[:, None]
    choice = tl.arange(0, TOP_LANES)[None, :]
    inside = (token < tokens) & (choice < TOP)
    at = token * EXPERTS + tl.load(experts + token * TOP + choice, mask=inside, other=0)
    score = tl.where(inside, tl.sigmoid(tl.load(logits + at, mask=inside, other=0.0).to(tl.float32)), 0.0)
    slope = tl.load(grad + token * TOP + choice, mask=inside, other=0.0) * scaling
    if NORMALISE:
        total = tl.sum(score, 1)[:, None] + 1e-20
        slope = (slope - tl.sum(slope * score, 1)[:, None] / total) / total
    tl.store(grad_logits + at, slope * score * (1 - score), mask=inside)


class MoeRoute(torch.autograd.Function):
    """`moe_route` with the gradient of its weights; returns the fields of a `Routing` in their order."""

    @staticmethod
    def forward(ctx, logits: Tensor, bias: Tensor, rule: RouteRule) -> tuple[Tensor, ...]:
        """Keep logits and choice."""
        logits = logits.contiguous()
        weights, experts, histogram = _choose(logits, bias.float().contiguous(), rule)
        counts, order, position = _place(experts, histogram)
        ctx.save_for_backward(logits, experts)
        ctx.rule = rule
        ctx.mark_non_differentiable(experts, counts, order, position)
        return weights, experts, counts, order, position

    @staticmethod
    def backward(ctx, grad: Tensor, *_: Tensor):
        """Gradient of the logits: zero but for the experts chosen."""
        logits, experts = ctx.saved_tensors
        tokens, top = experts.shape
        grad_logits = torch.zeros_like(logits)
        backward_kernel[(triton.cdiv(tokens, _TOKENS),)](
            grad.contiguous(), logits, experts, grad_logits, tokens, ctx.rule.scaling, EXPERTS=logits.shape[1], TOP=top,
            TOP_LANES=triton.next_power_of_2(top), NORMALISE=ctx.rule.normalise, TOKENS=_TOKENS,
        )  # fmt: skip
        return grad_logits, None, None


def _choose(logits: Tensor, bias: Tensor, rule: RouteRule) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights [T, top], experts [T, top] and the visits of each block of tokens, [blocks, E] int32."""
    tokens, experts = logits.shape
    blocks = triton.cdiv(tokens, _TOKENS)
    weights = logits.new_empty(tokens, rule.top, dtype=torch.float32)
    chosen = logits.new_empty(tokens, rule.top, dtype=torch.int64)
    histogram = logits.new_empty(blocks, experts, dtype=torch.int32)
    choose_kernel[(blocks,)](
        logits, bias, weights, chosen, histogram, tokens, rule.scaling, EXPERTS=experts,
        LANES=triton.next_power_of_2(experts), TOP=rule.top, TOP_LANES=triton.next_power_of_2(rule.top),
        GROUPS=rule.groups, GROUP_LANES=triton.next_power_of_2(rule.groups), TOP_GROUPS=rule.top_groups,
        NORMALISE=rule.normalise, TOKENS=_TOKENS, num_warps=8,
    )  # fmt: skip
    return weights, chosen, histogram


def _place(experts: Tensor, histogram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the pairs by expert, stable; return counts, order and position."""
    (blocks, count), pairs = histogram.shape, _TOKENS * experts.shape[1]
    first = torch.empty_like(histogram)
    counts, order = experts.new_empty(count), experts.new_empty(experts.numel())
    position = torch.empty_like(experts)
    count_kernel[(1,)](
        histogram, first, counts, blocks, EXPERTS=count, LANES=triton.next_power_of_2(count), BLOCKS=_BLOCKS
    )
    place_kernel[(blocks,)](
        experts, first, order, position, len(order), EXPERTS=count, PAIRS=pairs, LANES=triton.next_power_of_2(pairs)
    )
    return counts, order, position
