"""A memory whose tables lie in this process: the embedded default, and the reference for memory over the network."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memory_service.client.counters import LookupCounters
from memory_service.errors import OutOfMemory
from memory_service.memory import MemoryStats, Rows, require_table
from memory_service.metrics.metrics import Sample
from memory_service.snapshots.snapshot import Snapshot, load_newest
from memory_service.tables.distinct import DistinctRows
from memory_service.tables.spec import TableSpec


class LocalMemory:
    """Whole tables as arrays, behind the same API as MemoryClient. Safe to use from several threads."""

    def __init__(self, tables: Mapping[TableSpec, NDArray[np.uint8]]) -> None:
        for spec, packed in tables.items():
            if packed.dtype != np.uint8 or packed.shape != (spec.rows, spec.row_bytes):
                raise ValueError(
                    f"table {spec.name!r}: expected uint8 [{spec.rows}, {spec.row_bytes}], "
                    f"got {packed.dtype} {list(packed.shape)}"
                )
        self.specs: Mapping[str, TableSpec] = {spec.name: spec for spec in tables}
        self._tables = {spec.name: packed for spec, packed in tables.items()}
        self._counters = LookupCounters()

    @classmethod
    def load(cls, snapshot_uri: str | Path) -> LocalMemory:
        """Read every table of a snapshot, its checksums verified.

        If the URI names no generation and the newest one turns out damaged, the last good generation is read.

        Raises:
            SnapshotError: names what is missing or damaged.
        """
        return cls(load_newest(snapshot_uri, _read_tables))

    def lookup(self, table: str, rows: np.ndarray, timeout_s: float | None = None) -> Future[Rows]:
        """Look rows up, see Memory.lookup; the future is done on return, so `timeout_s` does not matter."""
        start = time.perf_counter()
        spec = require_table(self.specs, table)
        with self._counters.stage("dedup"):
            asked = DistinctRows(spec, rows)
            inverse = asked.inverse()
        with self._counters.stage("gather"):
            unique = self._tables[table].take(asked.ids, axis=0)
        self._counters.answered(spec, asked.size, len(asked.ids), time.perf_counter() - start)
        self._counters.shard_rows("local", len(asked.ids))
        future: Future[Rows] = Future()
        future.set_result(Rows(unique, inverse))
        return future

    def stats(self) -> MemoryStats:
        """Counters since the memory was made."""
        return self._counters.snapshot()

    def collect(self) -> Iterator[Sample]:
        """The counters as samples of metrics, for an exporter."""
        return self._counters.collect()

    def close(self) -> None:
        """Release the tables."""
        self._tables = {}
        self.specs = {}


def _read_tables(snapshot: Snapshot) -> dict[TableSpec, NDArray[np.uint8]]:
    return {spec: _read_table(snapshot, spec) for spec in snapshot.specs.values()}


def _read_table(snapshot: Snapshot, spec: TableSpec) -> NDArray[np.uint8]:
    try:
        packed = np.empty((spec.rows, spec.row_bytes), np.uint8)
    except MemoryError as error:
        size = spec.rows * spec.row_bytes / 2**30
        raise OutOfMemory(
            f"table {spec.name!r} has {size:.1f} GiB, more than there is here: serve it from shards"
        ) from error
    for block, rows in snapshot.read_blocks(spec.name, range(spec.blocks)):
        start = block * spec.block_rows
        packed[start : start + len(rows)] = rows
    return packed
