"""Triton kernels of `mla_prefill`: attention without materialised weights (arXiv 2205.14135), and its gradient.

With weights p = softmax(s), gradient g of the output o and d = <g, o>: d v = p^T g, d s = p (g v^T - d), and d query
and d key follow from d s as in any product. The weights are computed again from the logarithm of their sum, to base 2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.attention import lanes, load_rows, score, store_rows
from kernels.gpu.product import add_product
from kernels.gpu.tuning import autotune
from kernels.spans import Spans

_TILES, _GRAD_TILES = (
    [
        triton.Config({"ROWS": rows, "COLUMNS": columns}, num_warps=warps, num_stages=stages)
        for rows, columns, warps, stages in tiles
    ]
    for tiles in (((128, 64, 8, 3), (128, 128, 8, 2), (64, 32, 8, 2)), ((64, 64, 8, 2), (64, 32, 4, 2)))
)


@triton.jit
def _span(offsets, sequence):
    """Where a sequence begins, and how long it is."""
    begin = tl.load(offsets + sequence)
    return begin, (tl.load(offsets + sequence + 1) - begin).to(tl.int32)


@triton.jit
def _load_queries(
    query, pair, inside, NOPE: tl.constexpr, ROPE: tl.constexpr, NOPE_LANES: tl.constexpr, ROPE_LANES: tl.constexpr
):
    """The plain and the rotary part of the queries of (token, head) pairs [n]."""
    start = query + pair[:, None] * (NOPE + ROPE)
    return load_rows(start, inside, NOPE, NOPE_LANES), load_rows(start + NOPE, inside, ROPE, ROPE_LANES)


@triton.jit
def _load_context(
    key, rotary, value, place, there, head, key_row, key_head, value_row, value_head, NOPE: tl.constexpr,
    ROPE: tl.constexpr, VALUE: tl.constexpr, NOPE_LANES: tl.constexpr, ROPE_LANES: tl.constexpr,
    VALUE_LANES: tl.constexpr,
):  # fmt: skip
    """One head's keys, the part of them that all heads share, and values, at places [n] of all contexts."""
    at = place[:, None]
    keys = load_rows(key + at * key_row + head * key_head, there, NOPE, NOPE_LANES)
    shared = load_rows(rotary + at * ROPE, there, ROPE, ROPE_LANES)
    return keys, shared, load_rows(value + at * value_row + head * value_head, there, VALUE, VALUE_LANES)


@triton.jit
def _load_slopes(grad, sums, dots, pair, inside, VALUE: tl.constexpr, VALUE_LANES: tl.constexpr):
    """Gradient of the outputs of pairs [n], logarithm of the weights' sum, and <gradient, output>."""
    logarithm, dot = tl.load(sums + pair, mask=inside, other=0.0), tl.load(dots + pair, mask=inside, other=0.0)
    return load_rows(grad + pair[:, None] * VALUE, inside, VALUE, VALUE_LANES), logarithm, dot


@autotune(_TILES, key=("HEADS", "NOPE", "ROPE", "VALUE"))
@triton.jit
def forward_kernel(
    query, key, rotary, value, out, sums, queries, contexts, key_row, key_head, value_row, value_head, scale,
    HEADS: tl.constexpr, NOPE: tl.constexpr, ROPE: tl.constexpr, VALUE: tl.constexpr, NOPE_LANES: tl.constexpr,
    ROPE_LANES: tl.constexpr, VALUE_LANES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Attention of a block of tokens of one head; the last block, with the longest context, comes first."""
    head, sequence = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    begin, count = _span(queries, sequence)
    origin, length = _span(contexts, sequence)
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS
    if first >= count:
        return
    row = first + tl.arange(0, ROWS)
    inside, seen, pair = row < count, length - count + row + 1, (begin + row) * HEADS + head
    plain, turned = _load_queries(query, pair, inside, NOPE, ROPE, NOPE_LANES, ROPE_LANES)
    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, VALUE_LANES), tl.float32)
    last = min(length, length - count + first + ROWS)
    for position in range(0, last, COLUMNS):
        column = position + tl.arange(0, COLUMNS)
        keys, shared, values = _load_context(
            key, rotary, value, origin + column, column < last, head, key_row, key_head, value_row, value_head,
            NOPE, ROPE, VALUE, NOPE_LANES, ROPE_LANES, VALUE_LANES,
        )  # fmt: skip
        scores = score(plain, turned, keys, shared, scale)
        scores = tl.where(column[None, :] < seen[:, None], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))  # position 0 is seen by all: finite from the first turn on
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weights, 1)
        mixed = add_product(weights.to(values.dtype), values, mixed * shrink[:, None])
        highest = higher
    tl.store(sums + pair, highest + tl.log2(total), mask=inside)
    store_rows(out + pair[:, None] * VALUE, inside, mixed / total[:, None], VALUE)


@autotune(_GRAD_TILES, key=("HEADS", "NOPE", "ROPE", "VALUE"))
@triton.jit
def query_grad_kernel(
    grad, query, key, rotary, value, sums, dots, grad_query, queries, contexts, key_row, key_head, value_row,
    value_head, scale, HEADS: tl.constexpr, NOPE: tl.constexpr, ROPE: tl.constexpr, VALUE: tl.constexpr,
    NOPE_LANES: tl.constexpr, ROPE_LANES: tl.constexpr, VALUE_LANES: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradient of a block of queries of one head, from all keys that they see; `dots` is <grad, out>."""
    head, sequence = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    begin, count = _span(queries, sequence)
    origin, length = _span(contexts, sequence)
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS
    if first >= count:
        return
    row = first + tl.arange(0, ROWS)
    inside, seen, pair = row < count, length - count + row + 1, (begin + row) * HEADS + head
    plain, turned = _load_queries(query, pair, inside, NOPE, ROPE, NOPE_LANES, ROPE_LANES)
    slope, logarithm, dot = _load_slopes(grad, sums, dots, pair, inside, VALUE, VALUE_LANES)
    grad_plain = tl.zeros((ROWS, NOPE_LANES), tl.float32)
    grad_turned = tl.zeros((ROWS, ROPE_LANES), tl.float32)
    last = min(length, length - count + first + ROWS)
    for position in range(0, last, COLUMNS):
        column = position + tl.arange(0, COLUMNS)
        keys, shared, values = _load_context(
            key, rotary, value, origin + column, column < last, head, key_row, key_head, value_row, value_head,
            NOPE, ROPE, VALUE, NOPE_LANES, ROPE_LANES, VALUE_LANES,
        )  # fmt: skip
        scores = score(plain, turned, keys, shared, scale)
        scores = tl.where(column[None, :] < seen[:, None], scores, float("-inf"))
        weights = tl.exp2(scores - logarithm[:, None])
        along = add_product(slope, tl.trans(values), tl.zeros((ROWS, COLUMNS), tl.float32))
        steps = (weights * (along - dot[:, None]) * scale).to(keys.dtype)
        grad_plain = add_product(steps, keys, grad_plain)
        grad_turned = add_product(steps, shared, grad_turned)
    start = grad_query + pair[:, None] * (NOPE + ROPE)
    store_rows(start, inside, grad_plain, NOPE)
    store_rows(start + NOPE, inside, grad_turned, ROPE)


@autotune(_GRAD_TILES, key=("HEADS", "NOPE", "ROPE", "VALUE"))
@triton.jit
def context_grad_kernel(
    grad, query, key, rotary, value, sums, dots, grad_key, grad_rotary, grad_value, queries, contexts, key_row,
    key_head, value_row, value_head, scale, HEADS: tl.constexpr, NOPE: tl.constexpr, ROPE: tl.constexpr,
    VALUE: tl.constexpr, NOPE_LANES: tl.constexpr, ROPE_LANES: tl.constexpr, VALUE_LANES: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and values of one head, from all tokens that see them; everything is transposed."""
    head, sequence = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    begin, count = _span(queries, sequence)
    origin, length = _span(contexts, sequence)
    first = tl.program_id(0) * COLUMNS
    if first >= length:
        return
    column = first + tl.arange(0, COLUMNS)
    there, place = column < length, origin + column
    keys, shared, values = _load_context(
        key, rotary, value, place, there, head, key_row, key_head, value_row, value_head, NOPE, ROPE, VALUE,
        NOPE_LANES, ROPE_LANES, VALUE_LANES,
    )  # fmt: skip
    grad_keys = tl.zeros((COLUMNS, NOPE_LANES), tl.float32)
    grad_shared = tl.zeros((COLUMNS, ROPE_LANES), tl.float32)
    grad_values = tl.zeros((COLUMNS, VALUE_LANES), tl.float32)
    for token in range(max(first - (length - count), 0), count, ROWS):
        row = token + tl.arange(0, ROWS)
        inside, pair = row < count, (begin + row) * HEADS + head
        plain, turned = _load_queries(query, pair, inside, NOPE, ROPE, NOPE_LANES, ROPE_LANES)
        slope, logarithm, dot = _load_slopes(grad, sums, dots, pair, inside, VALUE, VALUE_LANES)
        scores = score(keys, shared, plain, turned, scale)
        visible = (column[:, None] <= (length - count + row)[None, :]) & inside[None, :]
        weights = tl.exp2(tl.where(visible, scores, float("-inf")) - logarithm[None, :])
        grad_values = add_product(weights.to(slope.dtype), slope, grad_values)
        along = add_product(values, tl.trans(slope), tl.zeros((COLUMNS, ROWS), tl.float32))
        steps = (weights * (along - dot[None, :]) * scale).to(plain.dtype)
        grad_keys = add_product(steps, plain, grad_keys)
        grad_shared = add_product(steps, turned, grad_shared)
    pair = (place * HEADS + head)[:, None]
    store_rows(grad_key + pair * NOPE, there, grad_keys, NOPE)
    store_rows(grad_rotary + pair * ROPE, there, grad_shared, ROPE)
    store_rows(grad_value + pair * VALUE, there, grad_values, VALUE)


class MlaPrefill(torch.autograd.Function):
    """`mla_prefill` with its gradient in query, key, rotary and value."""

    @staticmethod
    def forward(
        ctx, query: Tensor, key: Tensor, rotary: Tensor, value: Tensor, queries: Spans, contexts: Spans, scale: float
    ) -> Tensor:
        """Keep the inputs, the output and the logarithms of the weights' sums."""
        query, rotary = query.contiguous(), rotary.contiguous()
        key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (key, value))
        (tokens, heads, _), (sequences, sizes) = query.shape, (len(queries.offsets) - 1, _sizes(key, rotary, value))
        out = query.new_empty(tokens, heads, value.shape[-1])
        sums = query.new_empty(tokens, heads, dtype=torch.float32)
        forward_kernel[lambda tile: (triton.cdiv(queries.longest, tile["ROWS"]), heads, sequences)](
            query, key, rotary, value, out, sums, queries.offsets, contexts.offsets, *key.stride()[:2],
            *value.stride()[:2], scale, HEADS=heads, **sizes,
        )  # fmt: skip
        ctx.save_for_backward(query, key, rotary, value, out, sums)
        ctx.queries, ctx.contexts, ctx.scale = queries, contexts, scale
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        """Gradients of query, key, rotary and value; heads' shares of the rotary part are added up in fp32."""
        query, key, rotary, value, out, sums = ctx.saved_tensors
        queries, contexts, grad = ctx.queries, ctx.contexts, grad.contiguous()
        heads, sequences, sizes = query.shape[1], len(queries.offsets) - 1, _sizes(key, rotary, value)
        dots = (grad.float() * out.float()).sum(-1)
        inputs = (grad, query, key, rotary, value, sums, dots)
        layout = (queries.offsets, contexts.offsets, *key.stride()[:2], *value.stride()[:2], ctx.scale)
        grad_query, grad_key, grad_value = (
            torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value)
        )
        grad_rotary = rotary.new_empty(len(rotary), heads, rotary.shape[1], dtype=torch.float32)
        query_grad_kernel[lambda tile: (triton.cdiv(queries.longest, tile["ROWS"]), heads, sequences)](
            *inputs, grad_query, *layout, HEADS=heads, **sizes
        )
        context_grad_kernel[lambda tile: (triton.cdiv(contexts.longest, tile["COLUMNS"]), heads, sequences)](
            *inputs, grad_key, grad_rotary, grad_value, *layout, HEADS=heads, **sizes
        )
        return grad_query, grad_key, grad_rotary.sum(1).to(rotary.dtype), grad_value, None, None, None


def _sizes(key: Tensor, rotary: Tensor, value: Tensor) -> dict[str, int]:
    """Sizes of a head, and their lanes."""
    sizes = {"NOPE": key.shape[-1], "ROPE": rotary.shape[-1], "VALUE": value.shape[-1]}
    return sizes | {f"{name}_LANES": lanes(size) for name, size in sizes.items()}
