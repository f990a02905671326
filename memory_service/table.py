"""The blocks of one table that a shard holds, and the gather."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from memory_service.arena import Arena
from memory_service.errors import RowOutOfRange
from memory_service.memory import out_of_range
from memory_service.spec import TableSpec

_NOT_HELD = np.iinfo(np.int64).min // 2  # so far below zero that no row id added to it comes out positive


class ShardTable:
    """Some blocks of a table, in slots of an arena: the arena row of `row` is `row + delta[row >> k]`."""

    def __init__(self, spec: TableSpec, blocks: Iterable[int], version: int = 0) -> None:
        self.spec = spec
        self.version = version
        self.blocks: NDArray[np.int64] = np.unique(np.fromiter(blocks, np.int64))
        if self.blocks.size and not 0 <= self.blocks[0] <= self.blocks[-1] < spec.blocks:
            raise ValueError(f"table {spec.name!r} has blocks 0 to {spec.blocks - 1}, asked to hold {self.blocks}")
        self._arena = Arena(len(self.blocks), spec.block_rows, spec.row_bytes)
        self._delta = np.full(spec.blocks, _NOT_HELD, np.int64)
        self._delta[self.blocks] = (np.arange(len(self.blocks)) - self.blocks) * spec.block_rows

    @property
    def nbytes(self) -> int:
        """Bytes of the arena."""
        return self._arena.rows.nbytes

    def block(self, block: int) -> NDArray[np.uint8]:
        """Writable view of a held block, uint8 [rows of the block, row_bytes]."""
        slot = int(np.searchsorted(self.blocks, block))
        if slot == len(self.blocks) or self.blocks[slot] != block:
            raise self._not_held(block * self.spec.block_rows)
        return self._arena.slot(slot)[: self.spec.block_length(block)]

    def holds(self, blocks: NDArray[np.integer]) -> bool:
        """Whether every one of these blocks is held."""
        return bool(np.isin(blocks, self.blocks).all())

    def locate(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Arena rows of these row ids; RowOutOfRange for an id that the table or this shard does not have."""
        if not rows.size:
            return rows
        if (low := int(rows.min())) < 0:
            raise out_of_range(self.spec, low)
        if (high := int(rows.max())) >= self.spec.rows:
            raise out_of_range(self.spec, high)
        local = self._delta[rows >> self.spec.block_shift]
        local += rows
        if local.min() < 0:
            raise self._not_held(int(rows[np.argmin(local)]))
        return local

    def gather(self, local: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Copy located rows into `out`, uint8 [n, row_bytes]; runs without the GIL."""
        # "clip" spares the buffered copy that "raise" would make; locate() has checked the ids.
        np.take(self._arena.rows, local, axis=0, out=out, mode="clip")

    def _not_held(self, row: int) -> RowOutOfRange:
        block = row // self.spec.block_rows
        return RowOutOfRange(
            f"table {self.spec.name!r} row {row} lies in block {block}, which this shard does not hold: "
            "ask the shard that the placement names"
        )
