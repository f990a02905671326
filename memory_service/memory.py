"""The interface of a memory, wherever its rows live."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from memory_service.errors import FingerprintMismatch, UnknownTable
from memory_service.metrics.metrics import NO_SECONDS, Distribution, Sample
from memory_service.tables.spec import TableSpec

_Table = TypeVar("_Table")


@dataclass(frozen=True)
class Rows:
    """Packed rows of one lookup, each distinct row once: the requested rows are `unique[inverse]`."""

    unique: NDArray[np.uint8]
    """[distinct rows, row_bytes], writable, in no particular order."""
    inverse: NDArray[np.int64]
    """Index into `unique`, in the shape of the requested ids."""


@dataclass(frozen=True)
class MemoryStats:
    """Counters of one memory since it was opened; a snapshot of values, not a live view."""

    lookups: int = 0
    """Lookups answered with rows."""
    failed: int = 0
    """Lookups answered with an error."""
    rows: int = 0
    """Rows requested by the answered lookups."""
    unique_rows: int = 0
    """Rows left after dropping repeats within each lookup."""
    bytes: int = 0
    """Bytes of the unique rows."""
    lookup_seconds: float = 0.0
    """Sum over the answered lookups of the seconds from call to rows in place."""
    cache_hits: int = 0
    """Unique rows found in the client's cache."""
    cache_misses: int = 0
    """Unique rows not found in the client's cache; 0 without a cache."""
    hedges: int = 0
    """Hedges: requests to another replica because the first was slow."""
    failovers: int = 0
    """Failovers: requests to another replica because the first failed."""
    retries: int = 0
    """Retries: requests sent again after the placement was refreshed."""
    shard_rows: Mapping[str, int] = field(default_factory=dict)
    """Rows delivered by each shard, including rows that came twice."""
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds by stage, summed over the lookups."""
    latency: Distribution = NO_SECONDS
    """Distribution of the durations of answered lookups."""


class Memory(Protocol):
    """Tables of packed rows, here or over the network."""

    @property
    def specs(self) -> Mapping[str, TableSpec]:
        """The tables by name."""

    def lookup(self, table: str, rows: np.ndarray, timeout_s: float | None = None) -> Future[Rows]:
        """Request rows by id; returns at once.

        Args:
            table: name of a table.
            rows: row ids, an integer array of any shape; repeats cost nothing.
            timeout_s: seconds until the lookup fails; None takes the memory's default.

        Returns:
            A future that ends in Rows, or in a MemoryServiceError.

        Raises:
            UnknownTable, InvalidRequest, RowOutOfRange: the request cannot be right.
        """

    def stats(self) -> MemoryStats:
        """Counters since the memory was opened."""

    def collect(self) -> Iterator[Sample]:
        """The counters and more as samples of metrics, for an exporter."""

    def close(self) -> None:
        """Release threads, connections and tables. Lookups under way fail."""


def require_table(tables: Mapping[str, _Table], table: str) -> _Table:
    """Return the entry of a table.

    Raises:
        UnknownTable: there is no table of that name; lists those there are.
    """
    if table not in tables:
        raise UnknownTable(f"no table {table!r} in this memory: it has {', '.join(sorted(tables)) or 'none'}")
    return tables[table]


def check_fingerprints(memory: Memory, expected: Iterable[TableSpec]) -> None:
    """Check that the memory holds the tables that a model expects to read.

    Raises:
        FingerprintMismatch: a table differs in geometry, hash, row format or token map.
        UnknownTable: a table is missing.
    """
    for spec in expected:
        held = require_table(memory.specs, spec.name)
        if held.fingerprint != spec.fingerprint:
            raise FingerprintMismatch(
                f"table {spec.name!r}: the model expects fingerprint {spec.fingerprint[:16]}..., the memory has "
                f"{held.fingerprint[:16]}...; they differ in {', '.join(spec.differing_fields(held))}. "
                "Use the snapshot and the tokenizer that the model was trained with."
            )
