"""The product of two tiles, for every kernel that multiplies matrices."""

from __future__ import annotations

import os

import triton
import triton.language as tl

_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def add_product(left, right, total):
    """total + left right, in fp32: half precision through tensor cores, single precision without TF32's rounding."""
    if _INTERPRETED:  # numpy has no bf16; the products of two bf16 numbers are exact in fp32
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision="ieee")
