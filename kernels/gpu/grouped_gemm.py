"""Triton kernels of `grouped_swiglu` and `grouped_linear`: one product over all experts, and its gradients.

The grid covers as many tiles of rows as there can be; each program finds its expert from the counts, on the device.
Programs beyond the last tile have nothing to do.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.moe_combine import add_up
from kernels.gpu.product import add_product
from kernels.gpu.tuning import autotune
from kernels.routing import Routing

_GROUP = 8  # row tiles processed together column by column, so that weights stay in the L2 cache

_TILES = [
    triton.Config({"COLUMNS": columns, "DEPTH": depth}, num_warps=warps, num_stages=stages)
    for columns, depth, warps, stages in ((128, 64, 8, 4), (256, 64, 8, 3))
]
_GRAD_TILES = [
    triton.Config({"ROWS": rows, "COLUMNS": columns, "DEPTH": depth}, num_warps=warps, num_stages=stages)
    for rows, columns, depth, warps, stages in ((128, 128, 64, 8, 3), (64, 128, 32, 4, 4))
]


@triton.jit
def _find_tile(counts, tile, EXPERTS: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr):
    """The expert of a tile of ROWS rows (`LANES` if there is none), the tile's first row and the expert's last."""
    expert = tl.arange(0, LANES)
    count = tl.load(counts + expert, mask=expert < EXPERTS, other=0)
    tiles = (count + ROWS - 1) // ROWS
    found = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    earlier = expert < found
    begin = tl.sum(tl.where(earlier, count, 0), 0)
    end = begin + tl.sum(tl.where(expert == found, count, 0), 0)
    return found, begin + (tile - tl.sum(tl.where(earlier, tiles, 0), 0)) * ROWS, end


@triton.jit
def _swizzle(program, tiles, columns, GROUP: tl.constexpr):
    """Row and column of tiles for a program, GROUP rows done together."""
    group = program // (GROUP * columns)
    rows = min(tiles - group * GROUP, GROUP)
    inner = program % (GROUP * columns)
    return group * GROUP + inner % rows, inner // rows


@autotune(_TILES, key=("OUT", "IN", "ROWS", "SWIGLU", "TRANSPOSED"))
@triton.jit
def product_kernel(
    x, order, weight, out, kept, counts, tiles, top, EXPERTS: tl.constexpr, LANES: tl.constexpr, OUT: tl.constexpr,
    IN: tl.constexpr, TRANSPOSED: tl.constexpr, SWIGLU: tl.constexpr, KEEP: tl.constexpr, ROWS: tl.constexpr,
    GROUP: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """out = x weight_e^T with weight [E, OUT, IN]; TRANSPOSED: out = x weight_e with weight [E, IN, OUT].

    SWIGLU: weight is [E, OUT, IN], the upper half gate and the lower half up, `out` silu(gate) * up; x is gathered by
    `order`; KEEP stores gate and up in `kept`. Columns of gate and up alternate in a tile, so that a thread holds both.
    """
    tile, strip = _swizzle(tl.program_id(0), tiles, tl.cdiv(OUT, COLUMNS), GROUP)
    expert, first, end = _find_tile(counts, tile, EXPERTS, LANES, ROWS)
    if expert >= EXPERTS:
        return
    row = first + tl.arange(0, ROWS)
    inside = row < end
    source = tl.where(inside, row, first).to(tl.int64)  # results of rows and columns outside are not stored
    if SWIGLU:
        source = tl.load(order + source) // top
    column = strip * COLUMNS + tl.arange(0, COLUMNS)
    read = column if OUT % COLUMNS == 0 else tl.where(column < OUT, column, 0)
    if SWIGLU:
        read = read % 2 * (OUT // 2) + read // 2
    depth = tl.arange(0, DEPTH)
    a = x + source[:, None] * IN + depth[None, :]
    base = weight + expert.to(tl.int64) * (OUT * IN)
    b = base + (depth[:, None] * OUT + read[None, :] if TRANSPOSED else depth[:, None] + read[None, :] * IN)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, IN, DEPTH):
        if IN % DEPTH == 0:
            left, right = tl.load(a), tl.load(b)
        else:
            left = tl.load(a, mask=depth[None, :] < IN - start, other=0.0)
            right = tl.load(b, mask=depth[:, None] < IN - start, other=0.0)
        total = add_product(left, right, total)
        a += DEPTH
        b += DEPTH * OUT if TRANSPOSED else DEPTH
    at = row.to(tl.int64)[:, None]
    if SWIGLU:
        WIDTH: tl.constexpr = OUT // 2
        gate, up = tl.split(tl.reshape(total, (ROWS, COLUMNS // 2, 2)))
        half = (strip * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2))[None, :]
        stored = inside[:, None] & (half < WIDTH)
        if KEEP:
            tl.store(kept + at * OUT + half, gate.to(kept.dtype.element_ty), mask=stored)
            tl.store(kept + at * OUT + WIDTH + half, up.to(kept.dtype.element_ty), mask=stored)
        result = gate * tl.sigmoid(gate) * up
        tl.store(out + at * WIDTH + half, result.to(out.dtype.element_ty), mask=stored)
    else:
        stored = inside[:, None] & (column < OUT)[None, :]
        tl.store(out + at * OUT + column[None, :], total.to(out.dtype.element_ty), mask=stored)


@autotune(_GRAD_TILES, key=("OUT", "IN", "GATHER"))
@triton.jit
def weight_grad_kernel(
    grad, x, order, out, counts, top, EXPERTS: tl.constexpr, LANES: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr,
    GATHER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """out[e] = grad_e^T x_e over the rows of expert e: zero where there are none."""
    expert = tl.program_id(1)
    lane = tl.arange(0, LANES)
    count = tl.load(counts + lane, mask=lane < EXPERTS, other=0)
    begin = tl.sum(tl.where(lane < expert, count, 0), 0)
    end = begin + tl.sum(tl.where(lane == expert, count, 0), 0)
    strips: tl.constexpr = (IN + COLUMNS - 1) // COLUMNS
    i = (tl.program_id(0) // strips * ROWS + tl.arange(0, ROWS))[None, :]
    j = (tl.program_id(0) % strips * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(begin, end, DEPTH):
        row = start + tl.arange(0, DEPTH).to(tl.int64)
        inside = row < end
        source = tl.load(order + row, mask=inside, other=0) // top if GATHER else row
        left = tl.load(grad + row[:, None] * OUT + i, mask=inside[:, None] & (i < OUT), other=0.0)
        right = tl.load(x + source[:, None] * IN + j, mask=inside[:, None] & (j < IN), other=0.0)
        total = add_product(tl.trans(left), right, total)
    i = tl.trans(i)
    at = expert.to(tl.int64) * (OUT * IN) + i * IN + j
    tl.store(out + at, total.to(out.dtype.element_ty), mask=(i < OUT) & (j < IN))


@triton.jit
def swiglu_backward_kernel(grad, kept, grad_kept, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """With s = sigmoid(g): d gate = grad * u * s * (1 + g (1 - s)), d up = grad * g * s."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    slope = tl.load(grad + row * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    at = row * (2 * WIDTH) + column
    gate = tl.load(kept + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(kept + at + WIDTH, mask=inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(gate)
    tl.store(grad_kept + at, (slope * up * s * (1 + gate * (1 - s))).to(grad_kept.dtype.element_ty), mask=inside)
    tl.store(grad_kept + at + WIDTH, (slope * gate * s).to(grad_kept.dtype.element_ty), mask=inside)


class GroupedSwiglu(torch.autograd.Function):
    """`grouped_swiglu` with its gradient in x and gate_up."""

    @staticmethod
    def forward(ctx, x: Tensor, gate_up: Tensor, routing: Routing, keep: bool) -> Tensor:
        """Store gate and up if a backward pass is to come."""
        x, gate_up, pairs = x.contiguous(), gate_up.contiguous(), len(routing.order)
        out = x.new_empty(pairs, gate_up.shape[1] // 2)
        kept = x.new_empty(pairs, gate_up.shape[1]) if keep else None
        _product(x, gate_up, routing.counts, out, kept=kept, routing=routing)
        if keep:
            ctx.save_for_backward(x, gate_up, kept, routing.order, routing.position, routing.counts)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Gradients of x and gate_up."""
        x, gate_up, kept, order, position, counts = ctx.saved_tensors
        (pairs, width), grad_kept = grad.shape, torch.empty_like(kept)
        block = min(triton.next_power_of_2(width), 1024)
        swiglu_backward_kernel[(pairs, triton.cdiv(width, block))](
            grad.contiguous(), kept, grad_kept, WIDTH=width, BLOCK=block
        )
        visits = x.new_empty(pairs, x.shape[1])
        _product(grad_kept, gate_up, counts, visits, transposed=True)
        grad_weight = _weight_grad(grad_kept, x, gate_up, counts, order)
        return add_up(visits, None, position), grad_weight, None, None


class GroupedLinear(torch.autograd.Function):
    """`grouped_linear` with its gradient in x and weight."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
        """Keep both factors."""
        x, weight = x.contiguous(), weight.contiguous()
        ctx.save_for_backward(x, weight, counts)
        out = x.new_empty(len(x), weight.shape[1])
        _product(x, weight, counts, out)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Gradients of x and weight."""
        x, weight, counts = ctx.saved_tensors
        grad, grad_x = grad.contiguous(), torch.empty_like(x)
        _product(grad, weight, counts, grad_x, transposed=True)
        return grad_x, _weight_grad(grad, x, weight, counts), None


def _product(
    x: Tensor, weight: Tensor, counts: Tensor, out: Tensor, *,
    kept: Tensor | None = None, routing: Routing | None = None, transposed: bool = False,
) -> None:  # fmt: skip
    """Fill `out` with `x` times each expert's matrix; with a routing, gather x and apply SwiGLU."""
    experts, pairs = len(weight), len(out)
    size, depth = weight.shape[1:] if not transposed else weight.shape[:0:-1]
    rows = _row_tile(pairs / experts, x.dtype)
    tiles = pairs // rows + min(experts, pairs)
    product_kernel[lambda tile: (tiles * triton.cdiv(size, tile["COLUMNS"]),)](
        x, counts if routing is None else routing.order, weight, out, out if kept is None else kept, counts, tiles,
        1 if routing is None else routing.experts.shape[1], EXPERTS=experts, LANES=triton.next_power_of_2(experts),
        OUT=size, IN=depth, TRANSPOSED=transposed, SWIGLU=routing is not None, KEEP=kept is not None, ROWS=rows,
        GROUP=_GROUP,
    )  # fmt: skip


def _row_tile(average: float, dtype: torch.dtype) -> int:
    """Rows of a tile, by the average number of rows of an expert: half a tile of each expert is wasted."""
    if average < 32:
        return 16
    return 64 if average < 256 or dtype == torch.float32 else 128  # fp32 does not use tensor cores


def _weight_grad(grad: Tensor, x: Tensor, weight: Tensor, counts: Tensor, order: Tensor | None = None) -> Tensor:
    """Gradient of `weight`, for x [rows, in], or with `order` [T, in] whose pairs it sorts."""
    experts, size, depth = weight.shape
    out = torch.empty_like(weight)
    weight_grad_kernel[lambda tile: (triton.cdiv(size, tile["ROWS"]) * triton.cdiv(depth, tile["COLUMNS"]), experts)](
        grad, x, counts if order is None else order, out, counts, 1 if order is None else len(order) // len(x),
        EXPERTS=experts, LANES=triton.next_power_of_2(experts), OUT=size, IN=depth, GATHER=order is not None,
    )  # fmt: skip
    return out
