"""Triton kernels of `row_unpack` and `row_expand`: a few positions a program, each of which gathers one row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.segment_sum import segment_sum
from kernels.gpu.tuning import autotune, row_tile, warps

_GROUP = 32  # values that share a scale


@autotune(warps(2, 4, 8), key=("DIM",))
@triton.jit
def expand_kernel(rows, inverse, out, positions, DIM: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Rows of floats, gathered and converted."""
    position = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = tl.load(inverse + position, position < positions, 0)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (position < positions)[:, None] & (column < DIM)
    values = tl.load(rows + row * DIM + column, inside, 0.0)
    tl.store(out + position[:, None] * DIM + column, values.to(out.dtype.element_ty), inside)


@autotune(warps(2, 4, 8), key=("DIM",))
@triton.jit
def fp8_kernel(
    packed, inverse, out, positions, ROW_BYTES: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr,
    GROUPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Rows of e4m3 values and their ue8m0 scales, as tiles [ROWS, GROUPS, GROUP]."""
    position = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = tl.load(inverse + position, position < positions, 0)[:, None, None]
    group = tl.arange(0, GROUPS)[None, :, None]
    column = group * GROUP + tl.arange(0, GROUP)[None, None, :]
    known = (position < positions)[:, None, None] & (group < DIM // GROUP)
    start = packed + row * ROW_BYTES
    values = decode_e4m3(tl.load(start + column, known, 0))
    scale = decode_ue8m0(tl.load(start + DIM + group, known, 0))
    tl.store(out + position[:, None, None] * DIM + column, (values * scale).to(out.dtype.element_ty), known)


@triton.jit
def decode_e4m3(byte):
    """Exact value of e4m3fn bytes, from their bits alone: not every architecture that Triton serves has the type.

    Exponent and mantissa, moved to those of fp32, are worth 2**-120 of the value; of subnormal numbers too.
    """
    bits = byte.to(tl.int32)
    magnitude = ((bits & 0x7F) << 20).to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2**120
    magnitude = tl.where((bits & 0x7F) == 0x7F, float("nan"), magnitude)
    return tl.where((bits & 0x80) != 0, -magnitude, magnitude)


@triton.jit
def decode_ue8m0(byte):
    """2**(byte - 127); for byte 0 that is a subnormal number of fp32."""
    bits = byte.to(tl.int32) << 23
    return tl.where(bits == 0, 0x00400000, bits).to(tl.float32, bitcast=True)


class RowExpand(torch.autograd.Function):
    """`row_expand` with its gradient."""

    @staticmethod
    def forward(ctx, rows: Tensor, inverse: Tensor) -> Tensor:
        """Keep the index and the number of rows."""
        ctx.save_for_backward(inverse)
        ctx.rows, ctx.dtype = len(rows), rows.dtype
        return _expand(rows.contiguous(), inverse, rows.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Sum gradients by row."""
        [inverse] = ctx.saved_tensors
        return segment_sum(grad.reshape(-1, grad.shape[-1]), inverse.reshape(-1), ctx.rows).to(ctx.dtype), None


def row_unpack(unique: Tensor, inverse: Tensor, row_format: str, dim: int, dtype: torch.dtype) -> Tensor:
    """The kernel behind `kernels.row_unpack.row_unpack`."""
    unique = unique.contiguous()
    if row_format != "fp8_e4m3_ue8m0":
        return _expand(unique.view(torch.bfloat16 if row_format == "bf16" else torch.float32), inverse, dtype)
    out = torch.empty((*inverse.shape, dim), dtype=dtype, device=unique.device)
    tile_rows, block = row_tile(dim)
    fp8_kernel[(triton.cdiv(inverse.numel(), tile_rows),)](
        unique, inverse.contiguous(), out, inverse.numel(), ROW_BYTES=unique.shape[1], DIM=dim, ROWS=tile_rows,
        GROUPS=max(1, block // _GROUP), GROUP=_GROUP,
    )  # fmt: skip
    return out


def _expand(rows: Tensor, inverse: Tensor, dtype: torch.dtype) -> Tensor:
    dim = rows.shape[1]
    out = torch.empty((*inverse.shape, dim), dtype=dtype, device=rows.device)
    tile_rows, block = row_tile(dim)
    expand_kernel[(triton.cdiv(inverse.numel(), tile_rows),)](
        rows, inverse.contiguous(), out, inverse.numel(), DIM=dim, ROWS=tile_rows, BLOCK=block
    )
    return out
