"""What the reasoning side sees of a memory, wherever the rows live."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from memory_service.errors import FingerprintMismatch, InvalidRequest, RowOutOfRange, UnknownTable
from memory_service.metrics import NO_SECONDS, Distribution, Sample
from memory_service.spec import TableSpec

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


def distinct_rows(spec: TableSpec, rows: np.ndarray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorted distinct ids [U] and the inverse in the shape of `rows`; refuses what is no row of the table."""
    rows = np.asarray(rows)
    if rows.dtype.kind not in "iu" and rows.size:
        raise InvalidRequest(f"table {spec.name!r}: row ids must be integers, got dtype {rows.dtype}")
    if rows.dtype == np.uint64 and rows.size and int(rows.max()) >= spec.rows:
        raise out_of_range(spec, int(rows.max()))  # before the cast below could wrap it round
    unique, inverse = _distinct(rows.ravel().astype(np.int64, copy=False))
    if unique.size and (unique[0] < 0 or unique[-1] >= spec.rows):
        raise out_of_range(spec, int(unique[0] if unique[0] < 0 else unique[-1]))
    return unique, inverse.reshape(rows.shape)


def _distinct(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What `numpy.unique` with `return_inverse` returns, in two thirds of the time where id and place fit one word.

    Sorting the pairs as single words is quicker than sorting places by id.
    """
    bits = max(1, (len(ids) - 1).bit_length())
    if not len(ids) or int(ids.min()) < 0 or int(ids.max()) >> (63 - bits):
        return np.unique(ids, return_inverse=True)
    words = (ids << bits) | np.arange(len(ids))
    words.sort()
    places, sorted_ids = words & ((1 << bits) - 1), words >> bits
    first = np.empty(len(ids), np.bool_)
    first[0] = True
    np.not_equal(sorted_ids[1:], sorted_ids[:-1], out=first[1:])
    inverse = np.empty(len(ids), np.int64)
    inverse[places] = np.cumsum(first) - 1
    return sorted_ids[first], inverse


def out_of_range(spec: TableSpec, row: int) -> RowOutOfRange:
    """The error for an id that the table does not have."""
    return RowOutOfRange(f"table {spec.name!r} has rows 0 to {spec.rows - 1}, asked for row {row}")


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
