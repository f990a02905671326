"""What the reasoning side sees of a memory, wherever the rows live."""

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
    """Packed rows of one lookup, each distinct row once: the rows asked for are `unique[inverse]`."""

    unique: NDArray[np.uint8]
    """[distinct rows, row_bytes], writable, in no particular order."""
    inverse: NDArray[np.int64]
    """Index into `unique`, in the shape of the ids asked for."""


@dataclass(frozen=True)
class MemoryStats:
    """Counters of one memory since it was opened; a snapshot of values, not a live view."""

    lookups: int = 0
    """Lookups answered with rows."""
    failed: int = 0
    """Lookups answered with an error."""
    rows: int = 0
    """Rows asked for by the answered lookups."""
    unique_rows: int = 0
    """Rows left of those after dropping repeats within a lookup."""
    bytes: int = 0
    """Bytes of the unique rows."""
    lookup_seconds: float = 0.0
    """Sum over the answered lookups of the time from call to rows in place."""
    cache_hits: int = 0
    """Rows that were in the client's cache."""
    cache_misses: int = 0
    """Rows that were not, where there is a cache."""
    hedges: int = 0
    """Requests asked of a second replica because the first was slow."""
    failovers: int = 0
    """Requests asked of another replica because the first failed."""
    retries: int = 0
    """Requests asked again after the placement was read anew."""
    shard_rows: Mapping[str, int] = field(default_factory=dict)
    """Rows that each shard delivered, those that came twice included."""
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    """Time by stage, summed over the lookups."""
    latency: Distribution = NO_SECONDS
    """How long the answered lookups took."""


class Memory(Protocol):
    """Tables of packed rows, here or over the network."""

    @property
    def specs(self) -> Mapping[str, TableSpec]:
        """The tables by name."""

    def lookup(self, table: str, rows: np.ndarray, timeout_s: float | None = None) -> Future[Rows]:
        """Ask for rows by id, an integer array of any shape; the future ends in Rows or in a MemoryServiceError.

        A request that cannot be right (unknown table, wrong dtype, id out of range) raises at once instead.
        """

    def stats(self) -> MemoryStats:
        """Counters since the memory was opened."""

    def collect(self) -> Iterator[Sample]:
        """The same and more as samples of metrics, for an exporter."""

    def close(self) -> None:
        """Let go of threads, connections and tables. Lookups under way fail."""


def require_table(tables: Mapping[str, _Table], table: str) -> _Table:
    """What stands under a table's name, or UnknownTable naming those there are."""
    if table not in tables:
        raise UnknownTable(f"no table {table!r} in this memory: it has {', '.join(sorted(tables)) or 'none'}")
    return tables[table]


def check_fingerprints(memory: Memory, expected: Iterable[TableSpec]) -> None:
    """Raise FingerprintMismatch, or UnknownTable, unless the memory holds exactly what a model expects to read."""
    for spec in expected:
        held = require_table(memory.specs, spec.name)
        if held.fingerprint != spec.fingerprint:
            raise FingerprintMismatch(
                f"table {spec.name!r}: the model expects fingerprint {spec.fingerprint[:16]}..., the memory has "
                f"{held.fingerprint[:16]}...; they differ in {', '.join(spec.differing_fields(held))}. "
                "Use the snapshot and the tokenizer that the model was trained with."
            )
