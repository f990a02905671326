"""Triton kernels of `rms_norm` and `add_rms_norm`: a few rows a program, and a strip of rows in the backward pass.

With x̂ = x / sqrt(mean(x²) + eps) and g the gradient of x̂ * w, the gradient of x is
(g * w - x̂ * mean(g * w * x̂)) / sqrt(mean(x²) + eps), and that of w is the sum of g * x̂ over rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.tuning import STRIPS, autotune, row_tile, warps


@autotune(warps(4, 8, 16), key=("SIZE",))
@triton.jit
def forward_kernel(
    x, residual, weight, out, total, rows, x_stride, residual_stride, eps, ADD: tl.constexpr, STREAMS: tl.constexpr,
    SIZE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A few rows a program; with ADD, `total` takes x + residual."""
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < SIZE)
    values = tl.load(x + row * x_stride + column, inside, 0.0)
    if ADD:
        added = tl.load(residual + row * residual_stride + column, inside, 0.0)
        values = (values.to(tl.float32) + added.to(tl.float32)).to(values.dtype)
        tl.store(total + row * SIZE + column, values, inside)
    values = values.to(tl.float32)
    if STREAMS == 1:
        scale = tl.load(weight + column, column < SIZE, 0.0)
    else:
        scale = tl.load(weight + (row % STREAMS) * SIZE + column, inside, 0.0)
    inverse = tl.rsqrt(tl.sum(values * values, 1) / SIZE + eps)[:, None]
    normed = values * inverse * scale.to(tl.float32)
    tl.store(out + row * SIZE + column, normed.to(out.dtype.element_ty), inside)


@autotune(warps(4, 8, 16), key=("SIZE",))
@triton.jit
def backward_kernel(
    x, weight, grad_out, grad_total, grad_x, partial, positions, x_stride, eps, ADD: tl.constexpr,
    STREAMS: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Strips of rows of one stream each; `partial` [strips, STREAMS, SIZE] takes their shares of weight's gradient."""
    strip, stream = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    scale = tl.load(weight + stream * SIZE + column, column < SIZE, 0.0).to(tl.float32)
    grad_weight = tl.zeros([BLOCK], tl.float32)
    for first in range(strip * ROWS, positions, tl.num_programs(0) * ROWS):
        position = (first + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        inside = (position < positions) & (column < SIZE)
        row = position * STREAMS + stream
        values = tl.load(x + row * x_stride + column, inside, 0.0).to(tl.float32)
        grad = tl.load(grad_out + row * SIZE + column, inside, 0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(values * values, 1) / SIZE + eps)[:, None]
        normed = values * inverse
        grad_weight += tl.sum(grad * normed, 0)
        scaled = grad * scale
        result = (scaled - normed * (tl.sum(scaled * normed, 1) / SIZE)[:, None]) * inverse
        if ADD:
            result += tl.load(grad_total + row * SIZE + column, inside, 0.0).to(tl.float32)
        tl.store(grad_x + row * SIZE + column, result.to(grad_x.dtype.element_ty), inside)
    share = partial + (strip * STREAMS + stream) * SIZE + tl.arange(0, BLOCK)
    tl.store(share, grad_weight, tl.arange(0, BLOCK) < SIZE)


class RmsNorm(torch.autograd.Function):
    """`rms_norm` with its gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Keep the input; the backward pass computes the statistics again, from rows that it reads anyway."""
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        _forward(x, None, weight.contiguous(), out, None, eps)
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx, grad_out: Tensor):
        """Gradients of x and weight."""
        x, weight = ctx.saved_tensors
        return *_backward(x, weight.contiguous(), grad_out, None, ctx.eps), None


class AddRmsNorm(torch.autograd.Function):
    """`add_rms_norm` with its gradient, which both terms of the sum share."""

    @staticmethod
    def forward(ctx, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Keep the sum, which the caller keeps as well."""
        out, total = (torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2))
        _forward(x, residual, weight.contiguous(), out, total, eps)
        ctx.save_for_backward(total, weight)
        ctx.eps = eps
        return out, total

    @staticmethod
    def backward(ctx, grad_out: Tensor, grad_total: Tensor):
        """Gradients of x, residual and weight."""
        total, weight = ctx.saved_tensors
        grad, grad_weight = _backward(total, weight.contiguous(), grad_out, grad_total, ctx.eps)
        return grad, grad, grad_weight, None


def _forward(x: Tensor, residual: Tensor | None, weight: Tensor, out: Tensor, total: Tensor | None, eps: float) -> None:
    size = weight.shape[-1]
    rows = _rows(x, size)
    added = rows if residual is None else _rows(residual, size)
    tile_rows, block = row_tile(size)
    forward_kernel[(triton.cdiv(len(rows), tile_rows),)](
        rows, added, weight, out, out if total is None else total, len(rows), rows.stride(0), added.stride(0), eps,
        ADD=residual is not None, STREAMS=weight.numel() // size, SIZE=size, ROWS=tile_rows, BLOCK=block,
    )  # fmt: skip


def _backward(
    x: Tensor, weight: Tensor, grad_out: Tensor, grad_total: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    size = weight.shape[-1]
    rows, streams = _rows(x, size), weight.numel() // size
    tile_rows, block = row_tile(size)
    strips = min(triton.cdiv(len(rows) // streams, tile_rows), STRIPS)
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    partial = x.new_empty((strips, *weight.shape), dtype=torch.float32)
    grad_out = grad_out.contiguous()
    backward_kernel[(strips, streams)](
        rows, weight, grad_out, grad_out if grad_total is None else grad_total.contiguous(), grad_x, partial,
        len(rows) // streams, rows.stride(0), eps, ADD=grad_total is not None, STREAMS=streams, SIZE=size,
        ROWS=tile_rows, BLOCK=block,
    )  # fmt: skip
    return grad_x, partial.sum(0).to(weight.dtype)


def _rows(x: Tensor, size: int) -> Tensor:
    """[..., size] -> [n, size] without a copy where one stride leads from row to row, the values of a row dense."""
    rows = x.reshape(-1, size)
    return rows if rows.stride(-1) == 1 else rows.contiguous()
