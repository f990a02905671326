"""The endless order of training sequences, as a function of the position: resuming needs one number and no replay."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6


@dataclass(frozen=True)
class SequenceOrder:
    """Sequences in epochs, each a permutation of all of them that depends on the seed and the epoch.

    The permutation is a Feistel network over the smallest even number of bits that holds `count`, applied again to what
    falls outside (cycle walking; Black and Rogaway, 2002). It needs no memory, so any position is found at once, and no
    random number generator, so it stays the same with other versions of libraries.

    Raises:
        ValueError: there are no sequences, or the seed is negative.
    """

    count: int
    """Number of sequences."""
    seed: int = 0
    """Another seed gives another order."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.count > 2**62:
            raise ValueError(f"count: {self.count} sequences cannot be ordered; use 1 to 2^62")
        if self.seed < 0:
            raise ValueError(f"seed: {self.seed} is negative; use 0 or more")

    def indices(self, begin: int, end: int) -> NDArray[np.int64]:
        """Return the sequences at positions begin to end - 1, [end - begin]; position p lies in epoch p // count.

        Raises:
            ValueError: the positions are negative or in the wrong order.
        """
        if not 0 <= begin <= end:
            raise ValueError(f"begin={begin}, end={end}: give positions from 0 on, in this order")
        found = np.empty(end - begin, np.int64)
        for epoch in range(begin // self.count, -(-end // self.count)):
            first, last = max(begin, epoch * self.count), min(end, (epoch + 1) * self.count)
            places = np.arange(first - epoch * self.count, last - epoch * self.count, dtype=np.uint64)
            found[first - begin : last - begin] = self._permute(places, epoch)
        return found

    def rank_indices(self, step: int, batch: int, rank: int = 0, ranks: int = 1) -> NDArray[np.int64]:
        """Return what a rank takes in a step: the rank-th of `ranks` equal slices of the step's batch, [batch / ranks].

        Args:
            step: number of the step from 0; its batch is at positions step * batch to (step + 1) * batch - 1.
            batch: sequences of a step on all ranks together.
            rank: number of the process, from 0.
            ranks: number of processes.

        Raises:
            ValueError: the batch cannot be divided evenly, or there is no such rank or step.
        """
        if batch < 1 or ranks < 1 or batch % ranks:
            raise ValueError(f"batch: {batch} sequences do not divide among {ranks} ranks; use a multiple of {ranks}")
        if not 0 <= rank < ranks or step < 0:
            raise ValueError(f"rank={rank}, step={step}: use a rank below {ranks} and a step from 0 on")
        share = batch // ranks
        begin = step * batch + rank * share
        return self.indices(begin, begin + share)

    def _permute(self, places: NDArray[np.uint64], epoch: int) -> NDArray[np.int64]:
        half = np.uint64(max(1, -(-(self.count - 1).bit_length() // 2)))
        keys = self._keys(epoch)
        values = _feistel(places, half, keys)
        while len(outside := np.flatnonzero(values >= self.count)):
            values[outside] = _feistel(values[outside], half, keys)
        return values.astype(np.int64)

    def _keys(self, epoch: int) -> NDArray[np.uint64]:
        digest = hashlib.shake_256(f"engram-ray order {self.seed} {epoch}".encode()).digest(8 * _ROUNDS)
        return np.frombuffer(digest, "<u8").astype(np.uint64)


def _feistel(values: NDArray[np.uint64], half: np.uint64, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Permute numbers of 2 * half bits."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_scramble(right, key) & mask)
    return (left << half) | right


def _scramble(values: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """Hash 64-bit numbers: the finaliser of SplitMix64 (Steele et al., 2014) on their sum with the key."""
    values = values + key
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
