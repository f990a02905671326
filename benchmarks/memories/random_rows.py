"""Random rows for tables as large as a machine's memory: all cores make blocks of random rows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from memory_service import TableSpec
from memory_service.tables.random_tables import random_block

_WINDOW = 256
"""Blocks made ahead of the consumer: about 256 MB."""


def random_blocks(spec: TableSpec, blocks: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield some blocks with their numbers, in order."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for begin in range(0, len(blocks), _WINDOW):
            window = blocks[begin : begin + _WINDOW]
            yield from zip(window, pool.map(lambda block: random_block(spec, block), window), strict=True)


def fill_table(spec: TableSpec, table: NDArray[np.uint8]) -> None:
    """Fill a table [rows, row_bytes], each core a block at a time."""

    def fill(block: int) -> None:
        begin = block * spec.block_rows
        table[begin : begin + spec.block_length(block)] = random_block(spec, block)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for _ in pool.map(fill, range(spec.blocks)):
            pass
