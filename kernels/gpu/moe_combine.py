"""Triton kernels of `moe_combine`: a program sums, or in the backward pass distributes, columns of one token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.tuning import autotune, warps

_COLUMNS = 1024  # most columns of a program of the forward pass


@autotune(warps(2, 4, 8), key=("SIZE", "TOP"))
@triton.jit
def combine_kernel(
    visits, weights, position, out, WEIGHTED: tl.constexpr, TOP: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    """out[t] = sum over k of weights[t, k] * visits[position[t, k]], without WEIGHTED the plain sum."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < SIZE
    total = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(TOP):
        row = tl.load(position + token * TOP + k)
        visit = tl.load(visits + row * SIZE + column, mask=inside, other=0.0).to(tl.float32)
        total += visit * tl.load(weights + token * TOP + k) if WEIGHTED else visit
    tl.store(out + token * SIZE + column, total.to(out.dtype.element_ty), mask=inside)


@autotune(warps(4, 8, 16), key=("SIZE", "TOP"))
@triton.jit
def backward_kernel(
    grad, visits, weights, position, grad_visits, grad_weights, TOP: tl.constexpr, SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """With p = position[t, k]: d visits[p] = weights[t, k] * grad[t], d weights[t, k] = <grad[t], visits[p]>."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    slope = tl.load(grad + token * SIZE + column, mask=inside, other=0.0).to(tl.float32)
    for k in range(TOP):
        at = tl.load(position + token * TOP + k) * SIZE + column
        visit = tl.load(visits + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_weights + token * TOP + k, tl.sum(slope * visit))
        scaled = slope * tl.load(weights + token * TOP + k)
        tl.store(grad_visits + at, scaled.to(grad_visits.dtype.element_ty), mask=inside)


class MoeCombine(torch.autograd.Function):
    """`moe_combine` with its gradient in visits and weights."""

    @staticmethod
    def forward(ctx, visits: Tensor, weights: Tensor, position: Tensor) -> Tensor:
        """Keep everything: both gradients are products of one input with the other."""
        visits, weights = visits.contiguous(), weights.contiguous()
        ctx.save_for_backward(visits, weights, position)
        return add_up(visits, weights, position)

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Gradients of visits and weights."""
        visits, weights, position = ctx.saved_tensors
        grad_visits, grad_weights = torch.empty_like(visits), torch.empty_like(weights)
        backward_kernel[(len(position),)](
            grad.contiguous(), visits, weights, position, grad_visits, grad_weights, TOP=position.shape[1],
            SIZE=visits.shape[1], BLOCK=triton.next_power_of_2(visits.shape[1]),
        )  # fmt: skip
        return grad_visits, grad_weights, None


def add_up(visits: Tensor, weights: Tensor | None, position: Tensor) -> Tensor:
    """Each token's visits [T * top, d] added up to [T, d], by weight if there are weights."""
    (tokens, top), size = position.shape, visits.shape[1]
    out = visits.new_empty(tokens, size)
    block = min(triton.next_power_of_2(size), _COLUMNS)
    combine_kernel[(tokens, triton.cdiv(size, block))](
        visits, visits if weights is None else weights, position, out, WEIGHTED=weights is not None, TOP=top, SIZE=size,
        BLOCK=block,
    )  # fmt: skip
    return out
