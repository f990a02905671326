"""Keeping the replicas of a block apart: on shards of different domains, which do not fail together.

A domain is what is lost at once, a node for example. Domains are given as integers [shards]; what the shards have is
`taken`, bool [blocks, shards]. Safety goes before balance, up to a point: where the domains are so unequal that the
replicas of a block are in different ones only if the shards of small domains hold more than others, these get up to
MOST_SHARE of their fair share. Replicas that cannot be kept apart even so stay together; nothing fails for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

MOST_SHARE = 1.5
"""Of a shard's fair share: enough for two replicas on two nodes of which one has twice the shards of the other."""


def number_domains(shards: Sequence[str], domains: Mapping[str, str] | None = None) -> NDArray[np.int64]:
    """Domains of the shards, [shards], from their names; a shard for which none or an empty one is given is its own.

    Where all shards are in one domain nothing can be kept apart: each is its own, too.
    """
    given = [(domains or {}).get(shard, "") for shard in shards]
    if len(set(given)) == 1:
        return np.arange(len(shards))
    keys = [(domain, "") if domain else ("", shard) for domain, shard in zip(given, shards, strict=True)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys])


def shares(domains: NDArray[np.int64], blocks: int, replicas: int) -> NDArray[np.float64]:
    """What part of an equal share of `replicas`, of all blocks together, each shard should have, [shards].

    A domain can use one replica of each block. What is beyond goes to other domains as far as they can use it.
    """
    size = np.bincount(domains)
    equal = size * (replicas / len(domains))
    surplus = np.maximum(equal - blocks, 0)
    room = np.maximum(np.minimum(equal * MOST_SHARE, blocks) - equal, 0)
    moved = min(surplus.sum(), room.sum())
    if not moved:
        return np.ones(len(domains))
    share = equal - surplus * (moved / surplus.sum()) + room * (moved / room.sum())
    return (share / equal)[domains]


def present(taken: NDArray[np.bool_], domains: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many replicas of each block are in each domain, [blocks, domains]."""
    counts = np.zeros((len(taken), domains.max() + 1), np.int64)
    for shard, domain in enumerate(domains):
        counts[:, domain] += taken[:, shard]
    return counts


def repeated(taken: NDArray[np.bool_], scores: NDArray[np.uint64], domains: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which replicas share their domain with another one of the block that scores higher, [blocks, shards]."""
    repeats = np.zeros_like(taken)
    for domain in np.flatnonzero(np.bincount(domains) > 1):
        members = np.flatnonzero(domains == domain)
        score = np.where(taken[:, members], scores[:, members], 0)
        repeats[:, members] = taken[:, members] & (score < score.max(axis=1, keepdims=True))
    return repeats


def separate(taken: NDArray[np.bool_], domains: NDArray[np.int64], most: NDArray[np.int64]) -> None:
    """Move replicas out of domains that have another one of the block, no shard beyond `most`, as far as that goes.

    A replica moves to a shard with room, or else changes places with one of a block that both domains can do with.
    Every step leaves fewer replicas together. With three replicas or more on unequal domains a few may be left that
    only a longer chain of exchanges would part.
    """
    if domains.max() + 1 == len(domains):
        return
    state = _Separation(taken, domains, most)
    while sum(map(state.part, np.flatnonzero((state.present > 1).any(axis=1)))):  # one move can make way for another
        pass


class _Separation:
    def __init__(self, taken: NDArray[np.bool_], domains: NDArray[np.int64], most: NDArray[np.int64]) -> None:
        self._taken = taken
        self._domains = domains
        self._room = most - taken.sum(axis=0)
        self.present = present(taken, domains)

    def part(self, block: np.int64) -> bool:
        """Move one replica of a block to a domain that has none; whether there was a way."""
        crowded = self._taken[block] & (self.present[block] > 1)[self._domains]
        free = np.flatnonzero((self.present[block] == 0)[self._domains])
        if not crowded.any() or not free.size:
            return False
        source = int(np.argmin(np.where(crowded, self._room, np.iinfo(np.int64).max)))
        free = free[np.argsort(-self._room[free], kind="stable")]
        if self._room[free[0]] > 0:
            self._move(block, source, int(free[0]))
            return True
        return any(self._swap(block, source, int(target)) for target in free)

    def _swap(self, block: np.int64, source: int, target: int) -> bool:
        fitting = np.flatnonzero(self._taken[:, target] & (self.present[:, self._domains[source]] == 0))
        if not fitting.size:
            return False
        crowding = self.present[fitting, self._domains[target]]
        other = fitting[np.argmax(crowding)]  # at best one that should leave there anyway
        self._move(other, target, source)
        self._move(block, source, target)
        return True

    def _move(self, block: np.int64, source: int, target: int) -> None:
        self._taken[block, source], self._taken[block, target] = False, True
        self._room[source] += 1
        self._room[target] -= 1
        self.present[block, self._domains[source]] -= 1
        self.present[block, self._domains[target]] += 1
