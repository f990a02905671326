"""A cache of hot rows at the client, in front of the network: bounded in bytes, of one table version at a time.

Set-associative: a row may lie in any of the `ways` slots of one set, which its id selects. A set that is full gives up
the row least likely to be requested soon, by re-reference prediction (RRIP, Jaleel et al., ISCA 2010) with an age per
row: a newcomer is nearly as old as can be, each hit halves the age, and when none is old enough to go the set ages
together. So rows requested once leave first, and rows requested often stay. docs/hot-rows.md compares this with LRU
and with Belady's optimum on real text.

Two implementations keep the same rows: one by operations on whole arrays, and memory_service/native/client_cache.cc,
which takes a fraction of the time.
"""

from __future__ import annotations

from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from memory_service.native import extension

_OLDEST = 15  # age of the row that goes next
_UNUSED = 255  # age of a slot without a row: older than any row
_HASH = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: neighbouring ids fall into distant sets
_HALF = np.uint64(32)
_SLOTS_PER_ROW = 4  # of the table, at most: with so many, hardly any set of a table held whole overflows
_MOST_WAYS = 255


def set_bytes(table_rows: int, row_bytes: int, ways: int) -> int:
    """Bytes that one set takes: its rows, their ids and ages, and the scratch entry of a put."""
    return ways * (row_bytes + _tag_type(table_rows).itemsize + 1) + np.dtype(np.uint32).itemsize


class RowCache:
    """Packed rows of one table by id. Safe to use from several threads; what it keeps depends on the calls alone."""

    def __init__(
        self, rows: int, row_bytes: int, capacity_bytes: int, ways: int = 8, native: bool | None = None
    ) -> None:
        """Make an empty cache.

        Args:
            rows: rows of the table.
            row_bytes: bytes of a packed row.
            capacity_bytes: most bytes of all arrays together.
            ways: slots of a set.
            native: whether to use the native implementation; None to use it where it is built.

        Raises:
            ValueError: a value is out of range, or the capacity holds no set.
        """
        for name, value in (("rows", rows), ("row_bytes", row_bytes), ("ways", ways)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if ways > _MOST_WAYS:
            raise ValueError(f"ways={ways} must be at most {_MOST_WAYS}")
        one_set = set_bytes(rows, row_bytes, ways)
        if capacity_bytes < one_set:
            raise ValueError(
                f"capacity_bytes={capacity_bytes} is too small for one set of {ways} rows of {row_bytes} bytes: "
                f"give at least {one_set}, or do without a cache"
            )
        self.hits = 0
        """Ids found by `get`."""
        self.misses = 0
        """Ids not found by `get`."""
        self.evictions = 0
        """Rows evicted to make room for others; rows of an outdated version do not count."""
        sets = max(1, min(capacity_bytes // one_set, _SLOTS_PER_ROW * rows // ways))
        self.slots = sets * ways
        """Rows that the cache has room for."""
        self.nbytes = sets * one_set
        """Bytes of all arrays, at most the capacity; memory of rows is committed as they come."""
        self._table_rows = rows
        self._row_bytes = row_bytes
        compiled = extension() if native is not False else None
        self.native: Any = None if compiled is None else compiled.client.Cache(rows, sets, ways, row_bytes)
        """The native cache that holds the rows, if it is one; None for arrays of numpy."""
        self._sets: _Cache = self.native or _NumpyCache(sets, ways, rows, row_bytes)
        self._lock = Lock()  # of the counters

    @property
    def version(self) -> int:
        """Version of the table that the cached rows belong to; -1 before the first."""
        return self._sets.version

    def get(self, ids: NDArray[np.int64], out: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], int]:
        """Copy cached rows into place.

        Args:
            ids: distinct row ids, [n].
            out: receives the rows that are cached, [n, row_bytes]; the others are left alone.

        Returns:
            Which rows were cached, bool [n], and the version that all of them belong to.
        """
        self._check(ids, out)
        found = np.zeros(len(ids), np.bool_)
        hits, version = self._sets.get(ids, out, found)
        with self._lock:
            self.hits += hits
            self.misses += len(ids) - hits
        return found, version

    def put(self, ids: NDArray[np.int64], packed: NDArray[np.uint8], version: int) -> None:
        """Cache rows.

        A newer version than the cached one empties the cache first; rows of an older version are ignored. Of more than
        `ways` rows for one set the first are kept.

        Args:
            ids: distinct row ids, [m].
            packed: their packed rows, [m, row_bytes].
            version: version of the table that they belong to.
        """
        self._check(ids, packed)
        evicted = self._sets.put(ids, packed, version)
        with self._lock:
            self.evictions += evicted

    def _check(self, ids: NDArray[np.int64], rows: NDArray[np.uint8]) -> None:
        if ids.dtype != np.int64 or ids.ndim != 1:
            raise ValueError(f"ids: {ids.dtype} {ids.shape} must be int64 of one dimension")
        expected = (len(ids), self._row_bytes)
        if rows.dtype != np.uint8 or rows.shape != expected:
            raise ValueError(f"rows: {rows.dtype} {rows.shape} must be uint8 {expected}, one packed row for each id")
        unsigned = ids.view(np.uint64)
        if len(ids) and unsigned.max() >= self._table_rows:  # as unsigned numbers, negative ids are huge
            outside = ids[unsigned >= self._table_rows][0]
            raise ValueError(f"ids: {outside} is no row of a table of {self._table_rows}: give 0 to one less than that")


class _Cache(Protocol):
    """What holds the rows; safe to use from several threads, and ids are checked."""

    @property
    def version(self) -> int:
        """Version of the table that the rows belong to; -1 before the first."""

    def get(self, ids: NDArray[np.int64], out: NDArray[np.uint8], found: NDArray[np.bool_]) -> tuple[int, int]:
        """Copy cached rows to their places in `out`, mark them in `found`, and return their number and version."""

    def put(self, ids: NDArray[np.int64], packed: NDArray[np.uint8], version: int) -> int:
        """Cache rows that are not cached yet, and return how many others were evicted; see RowCache.put."""


class _NumpyCache:
    """Rows in arrays of numpy, on all of which an operation works at once."""

    def __init__(self, sets: int, ways: int, table_rows: int, row_bytes: int) -> None:
        tag_type = _tag_type(table_rows)
        self.version = -1
        self._count, self._ways = sets, ways
        self._no_tag = np.iinfo(tag_type).max
        self._tags = np.full((sets, ways), self._no_tag, tag_type)  # id of the row in each slot
        self._ages = np.full((sets, ways), _UNUSED, np.uint8)  # age of the row in each slot
        self._rows = np.empty((sets * ways, row_bytes), np.uint8)  # packed row in each slot
        self._claims = np.zeros(sets, np.uint32)  # scratch of `put`
        self._lock = Lock()

    def get(self, ids: NDArray[np.int64], out: NDArray[np.uint8], found: NDArray[np.bool_]) -> tuple[int, int]:
        with self._lock:
            places, slots = self._find(ids, self._sets_of(ids))
            self._ages.reshape(-1)[slots] >>= 1
            found[places] = True
            if len(places) == len(ids):
                np.take(self._rows, slots, axis=0, out=out, mode="clip")
            else:
                out[places] = self._rows.take(slots, axis=0, mode="clip")
            return len(places), self.version

    def put(self, ids: NDArray[np.int64], packed: NDArray[np.uint8], version: int) -> int:
        with self._lock:
            if version < self.version:
                return 0
            if version > self.version:
                self._tags.fill(self._no_tag)
                self._ages.fill(_UNUSED)
                self.version = version
            return self._put(ids, packed)

    def _put(self, ids: NDArray[np.int64], packed: NDArray[np.uint8]) -> int:
        sets = self._sets_of(ids)
        new = np.ones(len(ids), np.bool_)
        new[self._find(ids, sets)[0]] = False
        waiting = np.flatnonzero(new)
        evicted = 0
        for _ in range(self._ways):
            if not len(waiting):
                break
            first = self._first_of_each_set(sets[waiting])
            chosen = waiting[first]
            slots, left = self._make_room(ids[chosen], sets[chosen])
            evicted += left
            self._rows[slots] = packed.take(chosen, axis=0, mode="clip")
            waiting = waiting[~first]
        return evicted

    def _sets_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The set of each id: the upper half of its hash, scaled to the number of sets."""
        hashed = ids.view(np.uint64) * _HASH
        hashed >>= _HALF
        hashed *= np.uint64(self._count)
        hashed >>= _HALF
        return hashed.view(np.int64)

    def _find(self, ids: NDArray[np.int64], sets: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions in `ids` of those held, and their slots."""
        tags = self._tags.take(sets, axis=0, mode="clip")
        matches = np.flatnonzero(tags == ids.astype(tags.dtype)[:, None])
        places, ways = np.divmod(matches, self._ways)
        return places, sets[places] * self._ways + ways

    def _first_of_each_set(self, sets: NDArray[np.int64]) -> NDArray[np.bool_]:
        """One true entry for each distinct set: the first that names it."""
        order = np.arange(len(sets), dtype=np.uint32)
        claims = self._claims
        claims[sets[::-1]] = order[::-1]  # of assignments to one place numpy lets the last win
        return claims[sets] == order

    def _make_room(self, ids: NDArray[np.int64], sets: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
        """Give each id a slot of its set, no set twice; returns the slots, and how many rows left them."""
        ages = self._ages.take(sets, axis=0, mode="clip")
        leaving = np.arange(len(ids)), ages.argmax(axis=1)
        oldest = ages[leaving]
        ages += (_OLDEST - np.minimum(oldest, _OLDEST))[:, None]
        ages[leaving] = _OLDEST - 1
        self._ages[sets] = ages
        slots = sets * self._ways + leaving[1]
        self._tags.reshape(-1)[slots] = ids
        return slots, int(np.count_nonzero(oldest != _UNUSED))


def _tag_type(table_rows: int) -> np.dtype[np.unsignedinteger]:
    """The narrowest type for the ids of a table and one value that is none of them."""
    return np.dtype(np.uint32 if table_rows < 1 << 32 else np.uint64)
