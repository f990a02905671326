"""Replica selection: in turn, past shards that fail or are late; and when to hedge."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from memory_service.placement.placement import UNASSIGNED, Placement, ShardAddress

_STRIKES = 3  # hedged requests in a row after which a shard is avoided
_MAX_PAUSE_S = 30.0
_RECENT = 64  # answers by which the usual time of a shard is judged
_USUAL = 0.9  # quantile of those
_FACTOR = 3.0  # an answer is late after this many times the usual time of the fastest shard
_UNKNOWN_S = 0.1  # patience before any shard has answered


class ShardHealth:
    """Which shards to avoid: after a failure, or a few late answers in a row, for longer each time."""

    def __init__(self, pause_s: float) -> None:
        """Avoid a shard for `pause_s` seconds at first."""
        self._first_pause_s = pause_s
        self._lock = threading.Lock()
        self._strikes: dict[str, int] = {}
        self._pause_s: dict[str, float] = {}
        self._until: dict[str, float] = {}

    def answered(self, shard: str) -> None:
        """Record an answer in time: the shard is trusted again."""
        if shard in self._strikes or shard in self._until:
            with self._lock:
                for known in (self._strikes, self._pause_s, self._until):
                    known.pop(shard, None)

    def late(self, shard: str) -> None:
        """Record that a request to the shard was hedged."""
        with self._lock:
            self._strikes[shard] = self._strikes.get(shard, 0) + 1
            if self._strikes[shard] >= _STRIKES:
                self._suspect(shard)

    def failed(self, shard: str) -> None:
        """Record that the shard broke off or cannot be reached."""
        with self._lock:
            self._suspect(shard)

    def suspects(self) -> frozenset[str]:
        """Names of the shards to avoid now."""
        if not self._until:
            return frozenset()
        now = time.monotonic()
        with self._lock:
            return frozenset(shard for shard, until in self._until.items() if until > now)

    def _suspect(self, shard: str) -> None:
        now = time.monotonic()
        if self._until.get(shard, 0.0) > now:
            return  # this request was sent before the shard became a suspect
        pause = self._pause_s.get(shard, self._first_pause_s)
        self._until[shard] = now + pause
        self._pause_s[shard] = min(2 * pause, _MAX_PAUSE_S)


class Patience:
    """How long to wait for an answer before the request is hedged.

    Judged by the fastest shard, for requests of similar size: if slow shards counted, they would excuse themselves.
    """

    def __init__(self, least_s: float) -> None:
        """Wait `least_s` seconds at least."""
        self._least_s = least_s
        self._recent: dict[int, dict[str, deque[float]]] = {}
        self._known: dict[int, float] = {}
        self._seen = 0

    def record(self, shard: str, rows: int, seconds: float) -> None:
        """Record how long a shard took to answer a request for so many rows."""
        size = rows.bit_length()
        self._recent.setdefault(size, {}).setdefault(shard, deque(maxlen=_RECENT)).append(seconds)
        self._seen += 1
        if self._seen % 16 == 0 or size not in self._known:
            usual = min(sorted(times)[int(_USUAL * (len(times) - 1))] for times in map(list, self._of(size)))
            self._known[size] = max(self._least_s, _FACTOR * usual)

    def seconds(self, rows: int) -> float:
        """Seconds to wait for an answer of so many rows."""
        return self._known.get(rows.bit_length(), max(self._least_s, _UNKNOWN_S))

    def known(self) -> Mapping[int, float]:
        """Seconds to wait by the bit length of the number of rows, where answers have been recorded."""
        return dict(self._known)

    def _of(self, size: int) -> list[deque[float]]:
        return list(self._recent[size].values())


class HedgingBudget:
    """Limits hedges to a share of all requests, so that a slow memory is not slowed further by extra requests."""

    def __init__(self, share: float, reserve: float = 10.0) -> None:
        """Allow `share` hedges a request, of which at most `reserve` are saved up; the reserve is full at first."""
        self._share = share
        self._reserve = reserve
        self._left = reserve
        self._lock = threading.Lock()

    @property
    def has_room(self) -> bool:
        """Whether a hedge is allowed now."""
        return self._left >= 1

    def earn(self, requests: int = 1) -> None:
        """Count requests."""
        self._left = min(
            self._reserve, self._left + requests * self._share
        )  # a lost update costs a fraction of a request

    def spend(self) -> bool:
        """Count a hedge; False, and nothing is counted, if there is no room."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True


def choose(
    placement: Placement,
    table: str,
    blocks: NDArray[np.int64],
    turn: int,
    suspects: frozenset[str] = frozenset(),
    tried: Mapping[ShardAddress, NDArray[np.bool_]] | None = None,
) -> NDArray[np.uint16]:
    """Choose a replica for each of some blocks [n].

    Args:
        placement: names the replicas of each block.
        table: name of the table.
        blocks: block numbers, [n].
        turn: replicas of a block are taken in turn, by this number.
        suspects: shards that are chosen only where every other replica was tried.
        tried: by shard, the blocks for which it must not be chosen, [n].

    Returns:
        Index into `placement.shards` for each block, uint16 [n]; UNASSIGNED where every replica was tried.

    Raises:
        UnknownTable: the placement has no such table.
    """
    replicas = placement.assigned(table).take(blocks, axis=1)
    if len(replicas) == 1 and not tried:
        return replicas[0]
    counts = np.maximum((replicas != UNASSIGNED).sum(axis=0), 1)
    first = turn % counts
    if not tried and not suspects:
        return np.take_along_axis(replicas, first[None], axis=0)[0]
    rank = (np.arange(len(replicas))[:, None] - first) % counts
    rank += len(replicas) * np.isin(replicas, _numbers(placement, suspects))
    excluded = replicas == UNASSIGNED
    for number, shard in enumerate(placement.shards):
        if tried and shard in tried:
            excluded |= (replicas == number) & tried[shard]
    best = np.where(excluded, np.iinfo(rank.dtype).max, rank).argmin(axis=0)[None]
    chosen = np.take_along_axis(np.where(excluded, np.uint16(UNASSIGNED), replicas), best, axis=0)[0]
    return chosen.astype(np.uint16, copy=False)


def _numbers(placement: Placement, names: frozenset[str]) -> list[int]:
    return [number for number, shard in enumerate(placement.shards) if shard.shard in names]
