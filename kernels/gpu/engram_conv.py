"""Triton kernels of `engram_conv`: tiles of positions and channels.

With z the convolution's result, the gradient of SiLU(z) is sigmoid(z) * (1 + z * (1 - sigmoid(z))). A row of the inputs
gets its gradient from the positions that read it, one for each tap; a tap's weight, from all positions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.tuning import STRIPS, autotune

_TILES = [triton.Config({"ROWS": rows, "BLOCK": 2048 // rows}, num_warps=4) for rows in (32, 16, 8)]


@triton.jit
def convolve(
    seen, sources, weight, token, tokens, channel, CHANNELS: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum of the taps of a tile, [ROWS, BLOCK] fp32."""
    mixed = tl.zeros([ROWS, BLOCK], tl.float32)
    for tap in tl.static_range(TAPS):
        source = tl.load(sources + token * TAPS + tap, token < tokens, -1)
        share = tl.load(weight + channel * TAPS + tap, channel < CHANNELS, 0.0).to(tl.float32)
        values = tl.load(seen + source * CHANNELS + channel, (channel < CHANNELS) & (source >= 0), 0.0).to(tl.float32)
        mixed += values * share
    return mixed


@autotune(_TILES, key=("CHANNELS",))
@triton.jit
def conv_kernel(
    h, y, seen, sources, weight, kept, out, tokens, MASKED: tl.constexpr, CHANNELS: tl.constexpr, TAPS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """h + y + SiLU(conv(seen)) for a tile."""
    token = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    channel = (tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = (token < tokens) & (channel < CHANNELS)
    mixed = convolve(seen, sources, weight, token, tokens, channel, CHANNELS, TAPS, ROWS, BLOCK)
    added = tl.load(y + token * CHANNELS + channel, inside, 0.0).to(tl.float32) + mixed * tl.sigmoid(mixed)
    if MASKED:
        added = tl.where(tl.load(kept + token, token < tokens, 0) != 0, added, 0.0)
    added += tl.load(h + token * CHANNELS + channel, inside, 0.0).to(tl.float32)
    tl.store(out + token * CHANNELS + channel, added.to(out.dtype.element_ty), inside)


@autotune(_TILES, key=("CHANNELS",))
@triton.jit
def silu_backward_kernel(
    grad_out, seen, sources, weight, kept, grad_y, grad_mixed, tokens, MASKED: tl.constexpr, CHANNELS: tl.constexpr,
    TAPS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients in y and in the convolution's result."""
    token = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    channel = (tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = (token < tokens) & (channel < CHANNELS)
    place = token * CHANNELS + channel
    mixed = convolve(seen, sources, weight, token, tokens, channel, CHANNELS, TAPS, ROWS, BLOCK)
    grad = tl.load(grad_out + place, inside, 0.0).to(tl.float32)
    if MASKED:
        grad = tl.where(tl.load(kept + token, token < tokens, 0) != 0, grad, 0.0)
    share = tl.sigmoid(mixed)
    tl.store(grad_y + place, grad.to(grad_y.dtype.element_ty), inside)
    tl.store(grad_mixed + place, grad * share * (1 + mixed * (1 - share)), inside)


@autotune(_TILES, key=("CHANNELS",))
@triton.jit
def inputs_backward_kernel(
    grad_mixed, readers, weight, grad_seen, rows, CHANNELS: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients in the inputs: the convolution backwards, `readers` being the inverse of `sources`."""
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    channel = (tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = (row < rows) & (channel < CHANNELS)
    total = convolve(grad_mixed, readers, weight, row, rows, channel, CHANNELS, TAPS, ROWS, BLOCK)
    tl.store(grad_seen + row * CHANNELS + channel, total.to(grad_seen.dtype.element_ty), inside)


@autotune(_TILES, key=("CHANNELS",))
@triton.jit
def weight_backward_kernel(
    grad_mixed, seen, sources, partial, tokens, CHANNELS: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Partial sums of the weight's gradient over a strip of positions, `partial` [strips, TAPS, CHANNELS]."""
    strip, tap = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    channel = (tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK))[None, :]
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(strip * ROWS, tokens, tl.num_programs(0) * ROWS):
        token = (first + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        inside = (token < tokens) & (channel < CHANNELS)
        source = tl.load(sources + token * TAPS + tap, token < tokens, -1)
        values = tl.load(seen + source * CHANNELS + channel, inside & (source >= 0), 0.0).to(tl.float32)
        total += tl.sum(values * tl.load(grad_mixed + token * CHANNELS + channel, inside, 0.0), 0)
    place = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(partial + (strip * TAPS + tap) * CHANNELS + place, total, place < CHANNELS)


class EngramConv(torch.autograd.Function):
    """`engram_conv` and its gradients."""

    @staticmethod
    def forward(
        ctx, h: Tensor, y: Tensor, seen: Tensor, sources: Tensor, weight: Tensor, kept: Tensor | None
    ) -> Tensor:
        """Keep the inputs; the backward pass convolves again."""
        h, y, seen, sources, weight = (x.contiguous() for x in (h, y, seen, sources, weight))
        out = torch.empty_like(h)
        mask = sources if kept is None else kept.contiguous().view(torch.uint8)
        sizes = {"CHANNELS": seen.shape[1], "TAPS": weight.shape[1]}
        grid = _grid(len(h), seen.shape[1])
        conv_kernel[grid](h, y, seen, sources, weight, mask, out, len(h), MASKED=kept is not None, **sizes)
        ctx.save_for_backward(seen, sources, weight, mask)
        ctx.sizes, ctx.masked, ctx.y_dtype = sizes, kept is not None, y.dtype
        return out

    @staticmethod
    def backward(ctx, grad_out: Tensor):
        """Gradients of h, y, seen and weight."""
        seen, sources, weight, mask = ctx.saved_tensors
        tokens, channels, sizes = len(sources), seen.shape[1], ctx.sizes
        grad = grad_out.contiguous()
        grad_y = torch.empty(grad.shape, dtype=ctx.y_dtype, device=grad.device)
        grad_mixed = torch.empty((tokens, channels), dtype=torch.float32, device=grad.device)
        silu_backward_kernel[_grid(tokens, channels)](
            grad, seen, sources, weight, mask, grad_y, grad_mixed, tokens, MASKED=ctx.masked, **sizes
        )
        grad_seen = torch.empty_like(seen)
        readers = _invert(sources, len(seen))
        inputs_backward_kernel[_grid(len(seen), channels)](grad_mixed, readers, weight, grad_seen, len(seen), **sizes)
        grad_weight = _weight_gradient(grad_mixed, seen, sources, sizes).to(weight.dtype)
        return grad_out, grad_y, grad_seen, None, grad_weight, None


def _weight_gradient(grad_mixed: Tensor, seen: Tensor, sources: Tensor, sizes: dict[str, int]) -> Tensor:
    """[channels, taps] fp32."""
    tokens, taps = sources.shape
    strips = max(1, min(tokens // _TILES[0].kwargs["ROWS"], STRIPS // taps))
    partial = seen.new_empty((strips, taps, seen.shape[1]), dtype=torch.float32)

    def grid(meta: dict[str, int]) -> tuple[int, int, int]:
        return strips, triton.cdiv(seen.shape[1], meta["BLOCK"]), taps

    weight_backward_kernel[grid](grad_mixed, seen, sources, partial, tokens, **sizes)
    return partial.sum(0).T


def _invert(sources: Tensor, rows: int) -> Tensor:
    """Inverse of `sources`: the position whose tap reads a row, or -1, [rows, taps]."""
    readers = torch.full((rows + 1, sources.shape[1]), -1, device=sources.device)
    positions = torch.arange(len(sources), device=sources.device)[:, None].expand_as(sources)
    return readers.scatter_(0, torch.where(sources < 0, rows, sources), positions)[:rows].contiguous()


def _grid(rows: int, channels: int):
    return lambda meta: (triton.cdiv(rows, meta["ROWS"]), triton.cdiv(channels, meta["BLOCK"]))
