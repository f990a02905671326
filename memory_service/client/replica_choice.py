"""Which replica to ask: taking turns, past those that fail or answer late; and when to ask a second one."""

from __future__ import annotations

import threading
import time
from collections import deque

import numpy as np
from numpy.typing import NDArray

from memory_service.placement.placement import NOBODY, Placement

_STRIKES = 3  # late answers in a row until a shard is left alone
_MAX_PAUSE_S = 30.0
_RECENT = 64  # answers that the usual time of a shard is judged by
_USUAL = 0.9  # quantile of those
_FACTOR = 3.0  # times the usual time of the quickest shard: an answer is late
_UNKNOWN_S = 0.1  # late, as long as no shard has answered


class ShardHealth:
    """Leaves a shard alone after a failure or a few late answers, longer each time until it answers well."""

    def __init__(self, pause_s: float) -> None:
        self._first_pause_s = pause_s
        self._lock = threading.Lock()
        self._strikes: dict[str, int] = {}
        self._pause_s: dict[str, float] = {}
        self._until: dict[str, float] = {}

    def answered(self, shard: str) -> None:
        """It answered in time."""
        if shard in self._strikes or shard in self._until:
            with self._lock:
                for known in (self._strikes, self._pause_s, self._until):
                    known.pop(shard, None)

    def late(self, shard: str) -> None:
        """Somebody else was asked because it did not answer in time."""
        with self._lock:
            self._strikes[shard] = self._strikes.get(shard, 0) + 1
            if self._strikes[shard] >= _STRIKES:
                self._suspect(shard)

    def failed(self, shard: str) -> None:
        """It broke off, or cannot be reached."""
        with self._lock:
            self._suspect(shard)

    def suspects(self) -> frozenset[str]:
        """The shards to leave alone now."""
        if not self._until:
            return frozenset()
        now = time.monotonic()
        with self._lock:
            return frozenset(shard for shard, until in self._until.items() if until > now)

    def _suspect(self, shard: str) -> None:
        now = time.monotonic()
        if self._until.get(shard, 0.0) > now:
            return  # what fails now was asked before
        pause = self._pause_s.get(shard, self._first_pause_s)
        self._until[shard] = now + pause
        self._pause_s[shard] = min(2 * pause, _MAX_PAUSE_S)


class Patience:
    """How long to wait for a shard before asking another one for the same rows.

    Judged by the quickest shard, for requests of similar size: if the slow ones counted, they would excuse themselves.
    """

    def __init__(self, least_s: float) -> None:
        self._least_s = least_s
        self._recent: dict[int, dict[str, deque[float]]] = {}
        self._known: dict[int, float] = {}
        self._seen = 0

    def saw(self, shard: str, rows: int, seconds: float) -> None:
        """Note an answer."""
        size = rows.bit_length()
        self._recent.setdefault(size, {}).setdefault(shard, deque(maxlen=_RECENT)).append(seconds)
        self._seen += 1
        if self._seen % 16 == 0 or size not in self._known:
            usual = min(sorted(times)[int(_USUAL * (len(times) - 1))] for times in map(list, self._of(size)))
            self._known[size] = max(self._least_s, _FACTOR * usual)

    def seconds(self, rows: int) -> float:
        """How long to wait for so many rows."""
        return self._known.get(rows.bit_length(), _UNKNOWN_S)

    def _of(self, size: int) -> list[deque[float]]:
        return list(self._recent[size].values())


class Budget:
    """Lets a share of requests be asked twice, so that a slow memory is not made slower by being asked more."""

    def __init__(self, share: float, reserve: float = 10.0) -> None:
        self._share = share
        self._reserve = reserve
        self._left = reserve
        self._lock = threading.Lock()

    def earn(self) -> None:
        """One more request was sent."""
        self._left = min(self._reserve, self._left + self._share)  # a lost update costs a fraction of a request

    def spend(self) -> bool:
        """Whether one may be asked twice; if so, it is counted."""
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
    suspects: frozenset[str],
    tried: frozenset[str] = frozenset(),
) -> NDArray[np.uint16] | None:
    """A shard for each block, uint16 [n]: its replicas by turns, those suspected last; None if all were tried."""
    replicas = placement.assigned(table).take(blocks, axis=1)
    if len(replicas) == 1:
        chosen, counts = replicas[0], None
    else:
        counts = (replicas != NOBODY).sum(axis=0)
        chosen = np.take_along_axis(replicas, (turn % np.maximum(counts, 1))[None], axis=0)[0]
    for avoid, must in ((suspects | tried, False), (tried, True)):
        if not avoid:
            continue
        bad = np.isin(chosen, _numbers(placement, avoid))
        for other in replicas if counts is not None else ():
            usable = bad & (other != NOBODY) & ~np.isin(other, _numbers(placement, avoid))
            chosen, bad = np.where(usable, other, chosen), bad & ~usable
        if not bad.any():
            return chosen
        if must:
            return None
    return chosen


def _numbers(placement: Placement, names: frozenset[str]) -> list[int]:
    return [number for number, shard in enumerate(placement.shards) if shard.shard in names]
