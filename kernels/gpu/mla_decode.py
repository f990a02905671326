"""Triton kernels of `mla_decode`: attention within stretches of each context, then their combination.

A tile of queries holds as many (token, head) pairs as fit, so that a latent is read once for all of them. Each stretch
leaves its output and the logarithm of its weights' sum; the stretches' outputs are averaged by these sums. How long a
stretch is depends on the batch's shape alone, never on what a neighbour holds.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.attention import lanes, load_rows, score, store_rows
from kernels.gpu.product import add_product
from kernels.gpu.tuning import autotune, warps
from kernels.spans import Spans

_PROGRAMS = 512  # least number of programs: about four for each multiprocessor of an H100
_ROWS = 16  # least (token, head) pairs of a tile, as tensor cores require
_MOST_ROWS = 64  # what registers hold of 512 values each; single precision, which these cores do not take, stays at 16

_TILES = [
    triton.Config({"TOKENS": tokens}, num_warps=warps, num_stages=stages)
    for tokens, warps, stages in ((64, 8, 2), (32, 4, 3), (32, 8, 2))
]


@autotune(_TILES, key=("RANK", "ROPE", "HEADS", "ROWS"))
@triton.jit
def stretch_kernel(
    query, offsets, latents, pages, lengths, partial, sums, rows, table, span, scale, HEADS: tl.constexpr,
    RANK: tl.constexpr, ROPE: tl.constexpr, RANK_LANES: tl.constexpr, ROPE_LANES: tl.constexpr, PAGE: tl.constexpr,
    ROWS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Attention of ROWS (token, head) pairs over `span` positions; `sums` holds base-2 logarithms."""
    block, stretch, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    begin = tl.load(offsets + sequence)
    count = (tl.load(offsets + sequence + 1) - begin).to(tl.int32)
    length = tl.load(lengths + sequence).to(tl.int32)
    if block * ROWS >= count * HEADS:
        return
    row = block * ROWS + tl.arange(0, ROWS)
    inside, seen = row < count * HEADS, length - count + row // HEADS + 1
    row += begin * HEADS
    stored, first = row + stretch.to(tl.int64) * rows, stretch * span
    if first >= length:  # no position is visible; `partial` is not read
        tl.store(sums + stored, float("-inf"), mask=inside)
        return
    start = query + row[:, None] * (RANK + ROPE)
    plain = load_rows(start, inside, RANK, RANK_LANES)
    rotary = load_rows(start + RANK, inside, ROPE, ROPE_LANES)
    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, RANK_LANES), tl.float32)
    for turn in range(first, min(first + span, length), TOKENS):
        page = tl.load(pages + sequence * table + turn // PAGE).to(tl.int64)
        position = turn + tl.arange(0, TOKENS)
        source = latents + (page * PAGE + position % PAGE)[:, None] * (RANK + ROPE)
        latent = load_rows(source, position < length, RANK, RANK_LANES)
        shared = load_rows(source + RANK, position < length, ROPE, ROPE_LANES)
        scores = score(plain, rotary, latent, shared, scale)
        scores = tl.where(position[None, :] < seen[:, None], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)  # a token that sees none of these positions yet
        weights = tl.exp2(scores - shift[:, None])
        shrink = tl.exp2(highest - shift)
        total = total * shrink + tl.sum(weights, 1)
        mixed = add_product(weights.to(latent.dtype), latent, mixed * shrink[:, None])
        highest = higher
    total = tl.where(total == 0.0, 1.0, total)  # pairs without a visible position, marked by `highest`
    tl.store(sums + stored, highest + tl.log2(total), mask=inside)
    store_rows(partial + stored[:, None] * RANK, inside, mixed / total[:, None], RANK)


@autotune(warps(1, 2, 4), key=("RANK",))
@triton.jit
def combine_kernel(partial, sums, out, stretches, RANK: tl.constexpr, LANES: tl.constexpr):
    """Combine one pair's outputs over the stretches with visible positions."""
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    highest = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    mixed = tl.zeros((LANES,), tl.float32)
    for stretch in range(stretches):
        at = row + stretch * rows
        weight = tl.load(sums + at)
        if weight > float("-inf"):
            higher = tl.maximum(highest, weight)
            shrink, share = tl.exp2(highest - higher), tl.exp2(weight - higher)
            mixed = mixed * shrink + share * tl.load(partial + at * RANK + lane, mask=lane < RANK, other=0.0)
            total = total * shrink + share
            highest = higher
    tl.store(out + row * RANK + lane, (mixed / total).to(out.dtype.element_ty), mask=lane < RANK)


def decode(
    query: Tensor, queries: Spans, latents: Tensor, pages: Tensor, lengths: Tensor, rank: int, scale: float
) -> Tensor:
    """`mla_decode` on the tensors' device."""
    query, latents, pages = query.contiguous(), latents.contiguous(), pages.contiguous()
    (tokens, heads, width), (sequences, table), page = query.shape, pages.shape, latents.shape[1]
    most = _ROWS if query.dtype == torch.float32 else _MOST_ROWS
    rows = min(max(triton.next_power_of_2(queries.longest * heads), _ROWS), most)
    blocks = triton.cdiv(queries.longest * heads, rows)
    span = _pages_of_a_stretch(table, blocks * sequences) * page
    stretches = triton.cdiv(table * page, span)
    out = query.new_empty(tokens, heads, rank)
    partial = out if stretches == 1 else query.new_empty(stretches, tokens, heads, rank, dtype=torch.float32)
    sums = query.new_empty(stretches, tokens, heads, dtype=torch.float32)
    stretch_kernel[(blocks, stretches, sequences)](
        query, queries.offsets, latents, pages, lengths, partial, sums, tokens * heads, table, span, scale, HEADS=heads,
        RANK=rank, ROPE=width - rank, RANK_LANES=lanes(rank), ROPE_LANES=lanes(width - rank), PAGE=page,
        ROWS=rows,
    )  # fmt: skip
    if stretches > 1:
        combine_kernel[(tokens * heads,)](partial, sums, out, stretches, RANK=rank, LANES=triton.next_power_of_2(rank))
    return out


def _pages_of_a_stretch(table: int, programs: int) -> int:
    """Pages, a power of two, that cut contexts of at most `table` pages into enough stretches to fill the device."""
    return triton.next_power_of_2(triton.cdiv(table, triton.cdiv(_PROGRAMS, programs)))
