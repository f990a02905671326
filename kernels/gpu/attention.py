"""Shared by the attention kernels: loads and stores of rows padded for tensor cores, and base-2 scores."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.product import add_product

_LOG2_E = tl.constexpr(1.4426950408889634)


def lanes(size: int) -> int:
    """Lanes for `size` values: a power of two, at least 16 as tensor cores require."""
    return max(triton.next_power_of_2(size), 16)


@triton.jit
def load_rows(start, inside, SIZE: tl.constexpr, LANES: tl.constexpr):
    """Rows of SIZE values from `start` [n, 1], zero where not `inside` [n] and in the lanes past SIZE: [n, LANES]."""
    lane = tl.arange(0, LANES)[None, :]
    if SIZE == LANES:
        return tl.load(start + lane, mask=inside[:, None], other=0.0)
    return tl.load(start + lane, mask=inside[:, None] & (lane < SIZE), other=0.0)


@triton.jit
def store_rows(start, inside, rows, SIZE: tl.constexpr):
    """Store the first SIZE lanes of `rows` [n, lanes] at `start` [n, 1] where `inside` [n]."""
    lane = tl.arange(0, rows.shape[1])[None, :]
    tl.store(start + lane, rows.to(start.dtype.element_ty), mask=inside[:, None] & (lane < SIZE))


@triton.jit
def score(left, left_rotary, right, right_rotary, scale):
    """Scores [n, m] of the rows on the left with those on the right, times log2(e): `exp2` is what the device has."""
    scores = add_product(left, tl.trans(right), tl.zeros((left.shape[0], right.shape[0]), tl.float32))
    return add_product(left_rotary, tl.trans(right_rotary), scores) * (scale * _LOG2_E)
