"""Row accesses of a token stream, replayed through the client's cache or against ideal caches."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappush, heappushpop
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from memory_service.client.cache import RowCache

_TOGETHER = 64  # least number of tokens in a replayed call


@dataclass(frozen=True)
class Accesses:
    """Rows requested by a series of lookups, each row once a lookup."""

    ids: NDArray[np.int64]
    """[n], ascending within a lookup."""
    bounds: NDArray[np.int64]
    """[lookups + 1]: lookup i requests ids[bounds[i] : bounds[i + 1]]."""
    tokens: int
    """Tokens of all lookups."""

    @classmethod
    def of(cls, rows: NDArray[np.int64], tokens_a_lookup: int) -> Accesses:
        """From row ids [T, C] in the order of their lookups, leaving out what does not fill the last lookup."""
        lookups = len(rows) // tokens_a_lookup
        asked = np.sort(rows[: lookups * tokens_a_lookup].reshape(lookups, -1), axis=1)
        first = np.ones(asked.shape, np.bool_)
        np.not_equal(asked[:, 1:], asked[:, :-1], out=first[:, 1:])
        bounds = np.concatenate([[0], np.cumsum(first.sum(axis=1))])
        return cls(asked[first], bounds, lookups * tokens_a_lookup)

    def select(self, chosen: NDArray[np.bool_]) -> Accesses:
        """The chosen accesses only, in the same lookups."""
        bounds = np.concatenate([[0], np.cumsum(chosen)])[self.bounds]
        return Accesses(self.ids[chosen], bounds, self.tokens)


def interleave(tokens: int, streams: int, chunk: int) -> NDArray[np.int64]:
    """Positions of a stream of tokens cut into equal streams that take turns, `chunk` tokens at a time."""
    turns = tokens // (streams * chunk)
    length = tokens // streams
    starts = np.arange(streams)[None, :, None] * length + np.arange(turns)[:, None, None] * chunk
    return (starts + np.arange(chunk)).reshape(-1)


def replay(accesses: Accesses, cache: RowCache) -> NDArray[np.bool_]:
    """Which accesses the client's cache answers, bool [n]: each lookup asks it, then puts the rows it lacked.

    Lookups of few tokens are replayed several at a time; a row that repeats within them is a hit.
    """
    hits = np.ones(len(accesses.ids), np.bool_)
    out = np.empty((len(accesses.ids), 1), np.uint8)
    lookups = len(accesses.bounds) - 1
    together = max(1, _TOGETHER * lookups // max(1, accesses.tokens))
    edges = [*accesses.bounds[:-1:together].tolist(), len(accesses.ids)]
    for start, end in pairwise(edges):
        ids, first = np.unique(accesses.ids[start:end], return_index=True)
        found, _ = cache.get(ids, out[: len(ids)])
        hits[start + first] = found
        missed = ids[~found]
        cache.put(missed, out[: len(missed)], 0)
    return hits


def previous_use(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index of the access to the same row before, -1 for the first one."""
    order = np.argsort(ids, kind="stable")
    previous = np.full(len(ids), -1, np.int64)
    same = ids[order][1:] == ids[order][:-1]
    previous[order[1:][same]] = order[:-1][same]
    return previous


def lru_distances(previous: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows that a fully associative LRU cache needs room for so that an access hits; the largest int64 if none will do.

    Mattson's stack distance: distinct rows since the previous access p, this one included. Of the accesses before this
    one, those whose own previous access is at p or earlier are p + 1 up to p, and one for each distinct row since.
    """
    count = earlier_and_lower(np.argsort(np.argsort(previous, kind="stable"), kind="stable"))
    return np.where(previous >= 0, count - previous, np.iinfo(np.int64).max)


def earlier_and_lower(ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each element of a permutation of 0..n-1, how many before it are lower.

    A radix sort from the highest bit: when a group of equal higher bits splits, each one passes the zeros before it.
    """
    counts = np.zeros(len(ranks), np.int64)  # by rank
    sequence = ranks.copy()
    places = np.arange(len(ranks))
    for bit in reversed(range(len(ranks).bit_length())):
        is_zero = (sequence >> bit) & 1 == 0
        zeros = np.cumsum(is_zero) - is_zero
        start = sequence >> (bit + 1) << (bit + 1)  # ranks are dense, so a group starts at its lowest rank
        zeros -= zeros[start]
        counts[sequence[~is_zero]] += zeros[~is_zero]
        moved = np.where(is_zero, start + zeros, places - zeros + (1 << bit))
        sequence[moved] = sequence.copy()
    return counts[ranks]


def optimum(previous: NDArray[np.int64], capacity: int) -> NDArray[np.bool_]:
    """Which accesses hit in the best cache possible of `capacity` rows, bool [n]: Belady's MIN, free to keep nothing.

    A row is worth a place from one access to the next; when more than `capacity` are, the one needed last gives way.
    """
    end = len(previous)
    following = np.full(end, end, np.int64)
    following[previous[previous >= 0]] = np.flatnonzero(previous >= 0)
    kept = bytearray(end)
    held: list[int] = []  # negated next uses, the last one first; those in the past sink and do no harm
    room = capacity
    for now, use in enumerate(following.tolist()):
        room += kept[now]
        if use == end:
            continue
        kept[use] = 1
        if room:
            room -= 1
            heappush(held, -use)
        else:
            kept[-heappushpop(held, -use)] = 0
    return np.frombuffer(kept, np.uint8).astype(np.bool_)
