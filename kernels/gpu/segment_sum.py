"""Sum rows that belong together, always in the same order: sorted segments instead of atomic additions.

A segment of up to `_PART` rows is summed by one program. A longer one, such as that of a very common n-gram, is cut
into parts that many programs sum, and then the parts are summed. How many parts there can be at most is known without
asking the device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.tuning import autotune, row_tile, warps

_PART = 256


def segment_sum(values: Tensor, segments: Tensor, count: int) -> Tensor:
    """Return [count, dim] fp32: row s is the sum of the rows of `values` [P, dim] whose `segments` [P] int64 is s."""
    values, total = values.contiguous(), len(segments)
    in_order, order = segments.sort(stable=True)
    bounds = torch.searchsorted(in_order, torch.arange(count + 1, device=values.device))
    begins, ends = bounds[:-1], bounds[1:]
    parts = torch.where(ends - begins > _PART, (ends - begins + _PART - 1) // _PART, 0)
    out = torch.empty((count, values.shape[1]), dtype=torch.float32, device=values.device)
    _sum(values, order, begins, torch.where(parts > 0, begins, ends), out)
    most_parts = 2 * total // _PART  # a segment cut in n parts has more than (n - 1) * _PART rows, and n is 2 or more
    if most_parts:
        after = parts.cumsum(0)
        partial = torch.empty((most_parts, values.shape[1]), dtype=torch.float32, device=values.device)
        _sum(values, order, *_cut(begins, ends, after, parts, most_parts), partial)
        _sum(partial, None, after - parts, after, out)
    return out


def _cut(begins: Tensor, ends: Tensor, after: Tensor, parts: Tensor, most_parts: int) -> tuple[Tensor, Tensor]:
    """Begin and end of every part, [most_parts] each; empty where there is none."""
    part = torch.arange(most_parts, device=begins.device)
    owner = torch.searchsorted(after, part, right=True)
    known = owner < len(after)
    owner = owner.clamp_max(len(after) - 1)
    begin = begins[owner] + (part - (after - parts)[owner]) * _PART
    end = torch.minimum(begin + _PART, ends[owner])
    return torch.where(known, begin, 0), torch.where(known, end, 0)


def _sum(values: Tensor, order: Tensor | None, begins: Tensor, ends: Tensor, out: Tensor) -> None:
    """Write the sums of values[order[begin:end]], or with no order of values[begin:end] where that is not empty."""
    tile_rows, block = row_tile(values.shape[1])
    segment_sum_kernel[(triton.cdiv(len(begins), tile_rows),)](
        values, begins if order is None else order, begins, ends, out, len(begins), ORDERED=order is not None,
        DIM=values.shape[1], ROWS=tile_rows, BLOCK=block,
    )  # fmt: skip


@autotune(warps(2, 4, 8), key=("DIM",))
@triton.jit
def segment_sum_kernel(
    values, order, begins, ends, out, segments, ORDERED: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A few segments a program, one row of each at a time."""
    segment = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    begin = tl.load(begins + segment, segment < segments, 0)
    end = tl.load(ends + segment, segment < segments, 0)
    column = tl.arange(0, BLOCK)[None, :]
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for step in range(0, tl.max(end - begin, 0)):
        place = begin + step
        here = place < end
        row = tl.load(order + place, here, 0) if ORDERED else place
        added = tl.load(values + row[:, None] * DIM + column, here[:, None] & (column < DIM), 0.0)
        total += added.to(tl.float32)
    written = (segment < segments)[:, None] & (column < DIM)
    if not ORDERED:
        written = written & (end > begin)[:, None]
    tl.store(out + segment[:, None] * DIM + column, total, written)
