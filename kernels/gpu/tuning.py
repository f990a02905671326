"""Shared launch settings of all kernels: autotuning over a few committed configurations, and sizes of strips."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import triton

STRIPS = 256
"""Number of programs in kernels that sum over rows: fixed, so that sums do not depend on the device."""
_TILE = 2048  # values of a tile: four warps hold them in 16 registers a thread


def autotune(
    configs: Sequence[triton.Config], key: Sequence[str], in_place: Sequence[str] = ()
) -> Callable[[Any], Any]:
    """Decorate a kernel to measure `configs` once for each value of the arguments `key`, and keep the fastest.

    `key` must name sizes of the model only, never the number of tokens: one model then always runs one configuration,
    whose sums have one order. Arguments that the kernel both reads and writes are named by `in_place`: measuring runs
    it over and over, and they are put back after each run. The interpreter, which has no clock to go by, takes the
    first configuration. What was measured is kept on disk, beside Triton's compiled kernels.
    """
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    chosen = list(configs[:1] if interpreted else configs)
    return triton.autotune(configs=chosen, key=list(key), restore_value=list(in_place), cache_results=not interpreted)


def warps(*counts: int) -> list[triton.Config]:
    """Configurations that differ only in the number of warps."""
    return [triton.Config({}, num_warps=count) for count in counts]


def row_tile(size: int) -> tuple[int, int]:
    """Rows and columns (powers of two, columns at least `size`) of the tile that one program works on at a time."""
    block = triton.next_power_of_2(size)
    return max(1, _TILE // block), block
