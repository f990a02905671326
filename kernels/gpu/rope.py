"""Triton kernel of `rope`: a few tokens and heads a program. The backward pass turns back, halves to pairs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.tuning import autotune, row_tile, warps

_MOST_HEADS = 16  # of one program: more would leave too few programs when few tokens are decoded


@autotune(warps(2, 4, 8), key=("DIM", "HEADS"), in_place=("x",))
@triton.jit
def rope_kernel(
    x, out, cos, sin, tokens, heads, x_token, x_head, out_token, out_head, BACK: tl.constexpr, IN_PLACE: tl.constexpr,
    DIM: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Rotate tiles [TOKENS, HEADS, 2 * HALF]; with BACK, by minus the angle, from halves to interleaved pairs."""
    token = (tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS))[:, None, None]
    head = (tl.program_id(1).to(tl.int64) * HEADS + tl.arange(0, HEADS))[None, :, None]
    pair, column = tl.arange(0, HALF)[None, None, :], tl.arange(0, 2 * HALF)[None, None, :]
    known = (token < tokens) & (head < heads)
    source = x + token * x_token + head * x_head
    target = out + token * out_token + head * out_head
    angle = token * (DIM // 2) + pair
    turn_inside = (token < tokens) & (pair < DIM // 2)
    c = tl.load(cos + angle, turn_inside, 0.0).to(tl.float32)
    s = tl.load(sin + angle, turn_inside, 0.0).to(tl.float32)
    if BACK:
        first = tl.load(source + pair, known & (pair < DIM // 2), 0.0).to(tl.float32)
        second = tl.load(source + DIM // 2 + pair, known & (pair < DIM // 2), 0.0).to(tl.float32)
        both = tl.join(first * c + second * s, second * c - first * s)
        values = tl.reshape(both, [TOKENS, HEADS, 2 * HALF])
        tl.store(target + column, values.to(out.dtype.element_ty), known & (column < DIM))
    else:
        values = tl.load(source + column, known & (column < DIM), 0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(values, [TOKENS, HEADS, HALF, 2]))
        if IN_PLACE:
            tl.debug_barrier()  # a thread must not write what another has still to read
        lower, upper = first * c - second * s, second * c + first * s
        tl.store(target + pair, lower.to(out.dtype.element_ty), known & (pair < DIM // 2))
        tl.store(target + DIM // 2 + pair, upper.to(out.dtype.element_ty), known & (pair < DIM // 2))


class Rope(torch.autograd.Function):
    """`rope` with its gradient in x."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Keep the angles."""
        ctx.save_for_backward(cos, sin)
        return rotate_into(torch.empty_like(x, memory_format=torch.contiguous_format), x, cos, sin)

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Turn the gradient back: a rotation's inverse is its transpose, up to YaRN's magnitude, which stays."""
        cos, sin = ctx.saved_tensors
        out = torch.empty_like(grad, memory_format=torch.contiguous_format)
        return rotate_into(out, grad, cos, sin, back=True), None, None


def rotate_into(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor, back: bool = False) -> Tensor:
    """Write the rotation of `x` to `out`, which may be `x` itself unless it is turned back. Returns `out`."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    source, target = (tensor if tensor.ndim == 3 else tensor[:, None] for tensor in (x, out))
    tokens, heads, dim = source.shape
    assert target.stride(-1) == 1, "the values of a row must be dense in memory"
    tile_heads = min(triton.next_power_of_2(heads), _MOST_HEADS)
    tile_tokens, block = row_tile(tile_heads * triton.next_power_of_2(dim))
    half = max(1, block // tile_heads // 2)
    rope_kernel[(triton.cdiv(tokens, tile_tokens), triton.cdiv(heads, tile_heads))](
        source, target, cos.contiguous(), sin.contiguous(), tokens, heads, source.stride(0), source.stride(1),
        target.stride(0), target.stride(1), BACK=back, IN_PLACE=out is x, DIM=dim, TOKENS=tile_tokens,
        HEADS=tile_heads, HALF=half,
    )  # fmt: skip
    return out
