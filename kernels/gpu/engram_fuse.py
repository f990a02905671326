"""Triton kernels of `engram_gate` and `engram_fuse`: positions of one stream a program, a strip of them backward.

With r_h = 1 / sqrt(mean(h²) + eps), r_k likewise, w = q_weight * k_weight, and s = <h * k, w> * r_h * r_k / sqrt(d),
the gradient of s in h is k * w * r_h * r_k / sqrt(d) - s * h * r_h² / d, in k the same with h and k exchanged, and in
w it is h * k * r_h * r_k / sqrt(d).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.tuning import STRIPS, autotune, row_tile, warps


@triton.jit
def open_gate(s, SQRT: tl.constexpr):
    """The gate and its derivative in s."""
    if SQRT:
        size = tl.sqrt(tl.maximum(tl.abs(s), 1e-6))
        gate = tl.sigmoid(tl.where(s > 0, size, tl.where(s < 0, -size, 0.0)))
        slope = tl.where(tl.abs(s) < 1e-6, 0.0, gate * (1 - gate) * 0.5 / size)
    else:
        gate = tl.sigmoid(s)
        slope = gate * (1 - gate)
    return gate, slope


@triton.jit
def load_weight(q_weight, k_weight, stream, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """q_weight * k_weight of a stream, [1, BLOCK] fp32."""
    column = tl.arange(0, BLOCK)[None, :]
    weight = tl.load(q_weight + stream * SIZE + column, column < SIZE, 0.0).to(tl.float32)
    return weight * tl.load(k_weight + stream * SIZE + column, column < SIZE, 0.0).to(tl.float32)


@triton.jit
def load_inputs(
    h, keys, value, token, positions, stream, key_token, key_stream, value_token, STREAMS: tl.constexpr,
    SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Hidden state, key and value of positions [n, 1] of a stream, [n, BLOCK] fp32; their place in h, and its mask."""
    column = tl.arange(0, BLOCK)[None, :]
    inside = (token < positions) & (column < SIZE)
    place = (token * STREAMS + stream) * SIZE + column
    hidden = tl.load(h + place, inside, 0.0).to(tl.float32)
    key = tl.load(keys + token * key_token + stream * key_stream + column, inside, 0.0).to(tl.float32)
    return hidden, key, tl.load(value + token * value_token + column, inside, 0.0).to(tl.float32), place, inside


@triton.jit
def agreement(hidden, key, weight, eps, SIZE: tl.constexpr):
    """s of positions, r_h, and r_k, [n, 1] each."""
    scale_h = tl.rsqrt(tl.sum(hidden * hidden, 1) / SIZE + eps)[:, None]
    scale_k = tl.rsqrt(tl.sum(key * key, 1) / SIZE + eps)[:, None]
    return tl.sum(hidden * key * weight, 1)[:, None] * (scale_h * scale_k * tl.rsqrt(SIZE * 1.0)), scale_h, scale_k


@autotune(warps(4, 8, 16), key=("SIZE", "STREAMS"))
@triton.jit
def gate_kernel(
    h, keys, value, q_weight, k_weight, kept, out, positions, key_token, key_stream, value_token, eps,
    SQRT: tl.constexpr, MASKED: tl.constexpr, RESIDUAL: tl.constexpr, STREAMS: tl.constexpr, SIZE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Programs of the streams of one position follow each other: they share its value in the level-2 cache."""
    stream, tile = (tl.program_id(0) % STREAMS).to(tl.int64), (tl.program_id(0) // STREAMS).to(tl.int64)
    token = (tile * ROWS + tl.arange(0, ROWS))[:, None]
    hidden, key, v, place, inside = load_inputs(
        h, keys, value, token, positions, stream, key_token, key_stream, value_token, STREAMS, SIZE, BLOCK
    )
    s, _, _ = agreement(hidden, key, load_weight(q_weight, k_weight, stream, SIZE, BLOCK), eps, SIZE)
    gate, _ = open_gate(s, SQRT)
    y = (gate * v).to(value.dtype.element_ty).to(tl.float32)
    if MASKED:
        y = tl.where(tl.load(kept + token, token < positions, 0) != 0, y, 0.0)
    if RESIDUAL:
        y += hidden
    tl.store(out + place, y.to(out.dtype.element_ty), inside)


@autotune(warps(4, 8, 16), key=("SIZE", "STREAMS"))
@triton.jit
def gate_backward_kernel(
    h, keys, value, q_weight, k_weight, kept, grad_out, grad_h, grad_keys, gates, partial, positions, key_token,
    key_stream, value_token, eps, SQRT: tl.constexpr, MASKED: tl.constexpr, RESIDUAL: tl.constexpr,
    STREAMS: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients in h and keys; `gates` [T, G] for that in value; `partial` [strips, G, SIZE], shares of that in w."""
    stream, strip = (tl.program_id(0) % STREAMS).to(tl.int64), (tl.program_id(0) // STREAMS).to(tl.int64)
    weight = load_weight(q_weight, k_weight, stream, SIZE, BLOCK)
    grad_weight = tl.zeros([BLOCK], tl.float32)
    for first in range(strip * ROWS, positions, (tl.num_programs(0) // STREAMS) * ROWS):
        token = (first + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        hidden, key, v, place, inside = load_inputs(
            h, keys, value, token, positions, stream, key_token, key_stream, value_token, STREAMS, SIZE, BLOCK
        )
        grad = tl.load(grad_out + place, inside, 0.0).to(tl.float32)
        s, scale_h, scale_k = agreement(hidden, key, weight, eps, SIZE)
        gate, slope = open_gate(s, SQRT)
        if MASKED:
            keep = tl.load(kept + token, token < positions, 0) != 0
            gate, slope = tl.where(keep, gate, 0.0), tl.where(keep, slope, 0.0)
        grad_s = tl.sum(grad * v, 1)[:, None] * slope
        both = scale_h * scale_k * tl.rsqrt(SIZE * 1.0)
        in_h = grad_s * (key * weight * both - hidden * (s * scale_h * scale_h / SIZE))
        in_key = grad_s * (hidden * weight * both - key * (s * scale_k * scale_k / SIZE))
        grad_weight += tl.sum(grad_s * hidden * key * both, 0)
        if RESIDUAL:
            in_h += grad
        tl.store(grad_h + place, in_h.to(grad_h.dtype.element_ty), inside)
        tl.store(grad_keys + place, in_key.to(grad_keys.dtype.element_ty), inside)
        tl.store(gates + token * STREAMS + stream, gate, token < positions)
    column = tl.arange(0, BLOCK)
    tl.store(partial + (strip * STREAMS + stream) * SIZE + column, grad_weight, column < SIZE)


@autotune(warps(4, 8, 16), key=("SIZE", "STREAMS"))
@triton.jit
def value_backward_kernel(
    gates, grad_out, grad_value, positions, STREAMS: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The value's gradient: that of each stream times its gate."""
    token = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (token < positions) & (column < SIZE)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for stream in tl.static_range(STREAMS):
        gate = tl.load(gates + token * STREAMS + stream, token < positions, 0.0)
        total += gate * tl.load(grad_out + (token * STREAMS + stream) * SIZE + column, inside, 0.0).to(tl.float32)
    tl.store(grad_value + token * SIZE + column, total.to(grad_value.dtype.element_ty), inside)


class EngramGate(torch.autograd.Function):
    """`engram_gate`, or `engram_fuse` with `residual`, and the gradients."""

    @staticmethod
    def forward(
        ctx, h: Tensor, keys: Tensor, value: Tensor, q_weight: Tensor, k_weight: Tensor, sqrt: bool, eps: float,
        kept: Tensor | None, residual: bool,
    ) -> Tensor:  # fmt: skip
        """Keep the inputs; the backward pass computes the gates again, from rows that it reads anyway."""
        inputs = (h.contiguous(), _dense(keys), _dense(value), q_weight.contiguous(), k_weight.contiguous())
        out = torch.empty(h.shape, dtype=h.dtype if residual else value.dtype, device=h.device)
        options = _constants(h, sqrt, kept is not None, residual)
        mask = h if kept is None else kept.contiguous().view(torch.uint8)
        gate_kernel[(triton.cdiv(len(h), options["ROWS"]) * h.shape[1],)](
            *inputs, mask, out, len(h), *_strides(inputs), eps, **options
        )
        ctx.save_for_backward(*inputs, mask)
        ctx.eps, ctx.sqrt, ctx.masked, ctx.residual = eps, sqrt, kept is not None, residual
        return out

    @staticmethod
    def backward(ctx, grad_out: Tensor):
        """Gradients of h, keys, value, q_weight and k_weight."""
        *inputs, mask = ctx.saved_tensors
        h, _, _, q_weight, k_weight = inputs
        (tokens, streams, size), grad_out = h.shape, grad_out.contiguous()
        grad_h, grad_keys, grad_value = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs[:3])
        options = _constants(h, ctx.sqrt, ctx.masked, ctx.residual)
        strips = min(triton.cdiv(tokens, options["ROWS"]), STRIPS)
        gates = h.new_empty((tokens, streams), dtype=torch.float32)
        partial = h.new_empty((strips, streams, size), dtype=torch.float32)
        gate_backward_kernel[(strips * streams,)](
            *inputs, mask, grad_out, grad_h, grad_keys, gates, partial, tokens, *_strides(inputs), ctx.eps, **options
        )
        sizes = {name: options[name] for name in ("STREAMS", "SIZE", "ROWS", "BLOCK")}
        value_backward_kernel[(triton.cdiv(tokens, sizes["ROWS"]),)](gates, grad_out, grad_value, tokens, **sizes)
        grad_weight = partial.sum(0)
        grad_q, grad_k = (grad_weight * k_weight).to(q_weight.dtype), (grad_weight * q_weight).to(k_weight.dtype)
        return grad_h, grad_keys, grad_value, grad_q, grad_k, None, None, None, None


def _constants(h: Tensor, sqrt: bool, masked: bool, residual: bool) -> dict[str, int | bool]:
    """Compile-time constants of the gate's kernels."""
    _, streams, size = h.shape
    rows, block = row_tile(size)
    options = {"SQRT": sqrt, "MASKED": masked, "RESIDUAL": residual, "STREAMS": streams, "SIZE": size}
    return {**options, "ROWS": rows, "BLOCK": block}


def _strides(inputs: list[Tensor] | tuple[Tensor, ...]) -> tuple[int, int, int]:
    _, keys, value, *_ = inputs
    return keys.stride(0), keys.stride(1), value.stride(0)


def _dense(x: Tensor) -> Tensor:
    """As it is where the values of a row lie side by side: keys and value are usually parts of one projection."""
    return x if x.stride(-1) == 1 else x.contiguous()
