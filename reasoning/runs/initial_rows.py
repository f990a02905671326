"""Rows to start from: drawn at random for a new model, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from memory_service.tables.spec import TableSpec


@dataclass(frozen=True)
class NormalRows:
    """Master values of a table from N(0, std), as often as they are iterated: the blocks in order, [rows, dim] fp32."""

    spec: TableSpec
    """The table."""
    std: float
    """Standard deviation."""
    seed: int
    """Not negative; a block depends on seed, layer and its number only."""

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the blocks."""
        for block in range(self.spec.blocks):
            rng = np.random.default_rng([self.seed, self.spec.layer, block])
            values = rng.standard_normal((self.spec.block_length(block), self.spec.dim), dtype=np.float32)
            values *= np.float32(self.std)
            yield values
