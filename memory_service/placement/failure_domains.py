"""Failure domains: placing the replicas of a block on shards that do not fail together.

A failure domain, for example a node, contains the shards that are lost together. Domains are given as integers
[shards], and the blocks of the shards as `taken`, bool [blocks, shards]. Safety has priority over balance within
limits: if domains are so unequal that separating all replicas requires shards of small domains to hold more blocks,
these get up to MOST_SHARE times their fair share. Replicas that cannot be separated even then stay together, without an
error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

MOST_SHARE = 1.5
"""Largest share of a shard as a multiple of the fair share: enough for two replicas on two nodes with shards 2 : 1."""


def number_domains(shards: Sequence[str], domains: Mapping[str, str] | None = None) -> NDArray[np.int64]:
    """Number the failure domains of the shards.

    Args:
        shards: names of the shards.
        domains: domain by shard name; a shard without one, or with "", is a domain of its own.

    Returns:
        Number of each shard's domain, [shards]. If all shards are in one domain, nothing can be separated, and each
        shard counts as a domain of its own.
    """
    given = [(domains or {}).get(shard, "") for shard in shards]
    if len(set(given)) == 1:
        return np.arange(len(shards))
    keys = [(domain, "") if domain else ("", shard) for domain, shard in zip(given, shards, strict=True)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys])


def shares(domains: NDArray[np.int64], blocks: int, replicas: int) -> NDArray[np.float64]:
    """Share of each shard as a multiple of an equal share, [shards].

    A domain can hold one useful replica of each block. Replicas beyond that go to other domains as far as these can
    hold them.

    Args:
        domains: failure domain of each shard, [shards].
        blocks: number of blocks.
        replicas: number of replicas of all blocks together.
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
    """Number of replicas of each block in each domain, [blocks, domains]."""
    counts = np.zeros((len(taken), domains.max() + 1), np.int64)
    for shard, domain in enumerate(domains):
        counts[:, domain] += taken[:, shard]
    return counts


def repeated(taken: NDArray[np.bool_], scores: NDArray[np.uint64], domains: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Replicas that share their domain with a replica of the same block with a higher score, bool [blocks, shards]."""
    repeats = np.zeros_like(taken)
    for domain in np.flatnonzero(np.bincount(domains) > 1):
        members = np.flatnonzero(domains == domain)
        score = np.where(taken[:, members], scores[:, members], 0)
        repeats[:, members] = taken[:, members] & (score < score.max(axis=1, keepdims=True))
    return repeats


def separate(taken: NDArray[np.bool_], domains: NDArray[np.int64], most: NDArray[np.int64]) -> None:
    """Move replicas out of domains that hold another replica of the same block, as far as possible.

    A replica moves to a shard with room, or is exchanged with a replica of another block that either domain may hold.
    Every step reduces the number of replicas that share a domain. With three or more replicas on unequal domains, a few
    may remain that only a longer chain of exchanges would separate.

    Args:
        taken: blocks of the shards, bool [blocks, shards], changed in place.
        domains: failure domain of each shard, [shards].
        most: largest number of blocks for each shard, [shards].
    """
    if domains.max() + 1 == len(domains):
        return
    state = _Separation(taken, domains, most)
    while sum(map(state.part, np.flatnonzero((state.present > 1).any(axis=1)))):  # a move can enable others
        pass


class _Separation:
    def __init__(self, taken: NDArray[np.bool_], domains: NDArray[np.int64], most: NDArray[np.int64]) -> None:
        self._taken = taken
        self._domains = domains
        self._room = most - taken.sum(axis=0)
        self.present = present(taken, domains)

    def part(self, block: np.int64) -> bool:
        """Move a replica of a block to a domain that has none of it. Returns whether that was possible."""
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
        other = fitting[np.argmax(crowding)]  # preferably a block that should leave that domain anyway
        self._move(other, target, source)
        self._move(block, source, target)
        return True

    def _move(self, block: np.int64, source: int, target: int) -> None:
        self._taken[block, source], self._taken[block, target] = False, True
        self._room[source] += 1
        self._room[target] -= 1
        self.present[block, self._domains[source]] -= 1
        self.present[block, self._domains[target]] += 1
