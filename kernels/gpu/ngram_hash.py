"""Triton kernel of `ngram_hash`: a few positions of one layer a program.

A remainder is found without division: with c = floor(2**64 / p), the quotient of 0 <= x < 2**63 by p is the high half
of x * c, or one more.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.tuning import autotune
from kernels.ngram_hash import HashTables

_TILES = [triton.Config({"ROWS": rows}, num_warps=4) for rows in (128, 64, 32)]


@autotune(_TILES, key=("MAX_NGRAM", "HEADS"))
@triton.jit
def ngram_hash_kernel(
    ids, sequences, positions, blocked, token_map, multipliers, primes, offsets, reciprocals, out, count, pad_id,
    MASKED: tl.constexpr, MAX_NGRAM: tl.constexpr, HEADS: tl.constexpr, HEAD_BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Rows [ROWS, HEADS] of each order in turn."""
    layer = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    wanted = index < count
    position = tl.load(positions + index, wanted, 0)
    own = tl.load(sequences + position, wanted, 0)
    head = tl.arange(0, HEAD_BLOCK)[None, :]
    in_sight = wanted
    mix = tl.zeros([ROWS], tl.int64)
    for back in tl.static_range(MAX_NGRAM):
        place = position - back
        in_sight = in_sight & (place >= 0)
        in_sight = in_sight & (tl.load(sequences + place, in_sight, 0) == own)
        if MASKED:
            in_sight = in_sight & (tl.load(blocked + place, in_sight, 0) == 0)
        token = tl.load(ids + place, in_sight, 0)
        seen = tl.where(in_sight, tl.load(token_map + token, in_sight, 0), pad_id)
        mix = mix ^ (seen * tl.load(multipliers + layer * MAX_NGRAM + back))
        if back > 0:
            column = layer * (MAX_NGRAM - 1) * HEADS + (back - 1) * HEADS + head
            prime = tl.load(primes + column, head < HEADS, 1)
            reciprocal = tl.load(reciprocals + column, head < HEADS, 0)
            row = remainder(mix[:, None], prime, reciprocal) + tl.load(offsets + column, head < HEADS, 0)
            start = (layer * count + index)[:, None] * ((MAX_NGRAM - 1) * HEADS) + (back - 1) * HEADS
            tl.store(out + start + head, row, wanted[:, None] & (head < HEADS))


@triton.jit
def remainder(x, prime, reciprocal):
    """x mod prime."""
    left, right = tl.broadcast(x.to(tl.uint64, bitcast=True), reciprocal.to(tl.uint64, bitcast=True))
    rest = x - tl.umulhi(left, right).to(tl.int64, bitcast=True) * prime
    return tl.where(rest >= prime, rest - prime, rest)


def ngram_hash(ids: Tensor, sequences: Tensor, positions: Tensor, tables: HashTables, blocked: Tensor | None) -> Tensor:
    """`kernels.ngram_hash.ngram_hash` by a kernel."""
    layers, columns = tables.primes.shape
    out = torch.empty((layers, len(positions), columns), dtype=torch.int64, device=ids.device)
    ids, sequences, positions = ids.contiguous(), sequences.contiguous(), positions.contiguous()
    mask = ids if blocked is None else blocked.contiguous().view(torch.uint8)

    def grid(meta: dict[str, int]) -> tuple[int, int]:
        return triton.cdiv(len(positions), meta["ROWS"]), layers

    ngram_hash_kernel[grid](
        ids, sequences, positions, mask, tables.token_map, tables.multipliers, tables.primes, tables.offsets,
        tables.reciprocals, out, len(positions), tables.pad_id, MASKED=blocked is not None,
        MAX_NGRAM=tables.max_ngram, HEADS=tables.heads, HEAD_BLOCK=triton.next_power_of_2(tables.heads),
    )  # fmt: skip
    return out
