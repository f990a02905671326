"""How often each block of a shard is requested, estimated from a sample of its lookups."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from memory_service.protocol.reports import BlockRows
from memory_service.tables.spec import TableSpec


class BlockLoad:
    """Counts requested rows by table and block. Safe to use from several threads.

    Args:
        every: count only every so many lookups of a table, which is cheap and enough to find hot blocks.
    """

    def __init__(self, every: int = 8) -> None:
        self._every = every
        self._lock = threading.Lock()
        self._lookups: dict[str, itertools.count[int]] = {}  # by table, since callers may alternate between tables
        self._rows: dict[str, NDArray[np.int64]] = {}

    def count(self, spec: TableSpec, rows: NDArray[np.int64]) -> None:
        """Record a lookup of these row ids, all of which are in the table."""
        lookups = self._lookups.get(spec.name) or self._add(spec)
        if next(lookups) % self._every == 0:  # atomic, so that most lookups take no lock
            with self._lock:
                np.add.at(self._rows[spec.name], rows >> spec.block_shift, 1)

    def absorb(self, counted: Mapping[str, tuple[int, Iterable[tuple[int, int]]]]) -> None:
        """Add rows counted elsewhere, in as many of the lookups.

        Args:
            counted: by table, the number of its blocks, and pairs of block and rows.
        """
        with self._lock:
            for table, (blocks, pairs) in counted.items():
                counts = self._rows.setdefault(table, np.zeros(blocks, np.int64))
                for block, rows in pairs:
                    counts[block] += rows

    def read(self) -> BlockRows:
        """Estimated number of requested rows by table and block since construction."""
        with self._lock:
            return {table: self._nonzero(counts) for table, counts in self._rows.items()}

    def _add(self, spec: TableSpec) -> itertools.count[int]:
        with self._lock:
            self._rows.setdefault(spec.name, np.zeros(spec.blocks, np.int64))
            return self._lookups.setdefault(spec.name, itertools.count())

    def _nonzero(self, counts: NDArray[np.int64]) -> dict[int, int]:
        blocks = np.flatnonzero(counts)
        return dict(zip(blocks.tolist(), (counts[blocks] * self._every).tolist(), strict=True))
