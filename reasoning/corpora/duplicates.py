"""Duplicates: exact ones by a hash of the text without blanks, near ones by MinHash and locality-sensitive hashing.

Broder, "On the resemblance and containment of documents" (1997), with the settings of StarCoder (arXiv 2305.06161):
sets of 5-grams of words, and a Jaccard index of 0.7. The signature of a set is its smallest hash under each of 128 hash
functions; the share in which two signatures agree estimates the Jaccard index of the sets. Only texts whose signatures
agree in one whole band of 8 are compared.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

HASHES = 128
"""Hash functions of a signature."""
_BANDS = 16  # two files of similarity s share a band with probability 1 - (1 - s^8)^16: 0.61 at 0.7, 0.95 at 0.8
_GRAM = 5
_LEAST_WORDS = 10  # shorter files have too few 5-grams to be called alike
_CHUNK = 1024  # 5-grams hashed at once: their products fit into a core's cache
_WORD = re.compile(rb"[A-Za-z0-9_\x80-\xff]+")


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit numbers: the finaliser of SplitMix64 (Steele et al., 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# Odd factors of multiply-shift hashing, the same in every run.
_FACTORS = _mix(np.arange(1, HASHES + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)
_PLACES = _mix(np.arange(1000, 1000 + _GRAM, dtype=np.uint64)) | np.uint64(1)


@dataclass(frozen=True)
class TextFingerprint:
    """What two texts are compared by."""

    content: bytes
    """Hash of the text without its blanks, 16 bytes."""
    signature: NDArray[np.uint32] | None
    """MinHash signature, [HASHES]; None for a text that is too short to be compared."""

    @classmethod
    def of(cls, text: str) -> TextFingerprint:
        """Compute the fingerprint of a text."""
        content = xxhash.xxh3_128_digest("".join(text.split()).encode())
        words = _WORD.findall(text.encode())
        return cls(content, None if len(words) < _LEAST_WORDS else _signature(_grams(words)))


def _grams(words: Sequence[bytes]) -> NDArray[np.uint64]:
    """Return the distinct hashes of all runs of _GRAM words."""
    hashes = np.fromiter((xxhash.xxh3_64_intdigest(word) for word in words), np.uint64, len(words))
    count = len(words) - _GRAM + 1
    sums = sum((hashes[place : place + count] * _PLACES[place] for place in range(_GRAM)), np.zeros(count, np.uint64))
    return np.unique(_mix(sums))


def _signature(grams: NDArray[np.uint64]) -> NDArray[np.uint32]:
    least = np.full(HASHES, np.iinfo(np.uint64).max, np.uint64)
    for begin in range(0, len(grams), _CHUNK):
        products = grams[begin : begin + _CHUNK, None] * _FACTORS  # modulo 2^64
        np.minimum(least, products.min(axis=0), out=least)
    return (least >> np.uint64(32)).astype(np.uint32)


def find_duplicates(
    fingerprints: Sequence[TextFingerprint], order: Iterable[int], similarity: float
) -> dict[int, tuple[int, str]]:
    """Find the texts that repeat an earlier one.

    Args:
        fingerprints: fingerprints of all texts.
        order: indices of all texts; of those that are alike, the first in this order stays.
        similarity: estimated Jaccard index from which texts are near duplicates.

    Returns:
        For each text that repeats one that stays: the index of that one, and "exact duplicate" or "near duplicate".
    """
    found: dict[int, tuple[int, str]] = {}
    exact: dict[bytes, int] = {}
    near = _NearIndex(fingerprints, similarity)
    for index in order:
        own = fingerprints[index]
        if (earlier := exact.get(own.content)) is not None:
            found[index] = earlier, "exact duplicate"
        elif own.signature is not None and (earlier := near.like(own.signature)) is not None:
            found[index] = earlier, "near duplicate"
        else:
            exact[own.content] = index
            near.add(index)
    return found


class _NearIndex:
    """Texts by the bands of their signatures."""

    def __init__(self, fingerprints: Sequence[TextFingerprint], similarity: float) -> None:
        self._fingerprints, self._least = fingerprints, similarity * HASHES
        self._by_band: dict[tuple[int, bytes], list[int]] = defaultdict(list)

    def add(self, index: int) -> None:
        signature = self._fingerprints[index].signature
        if signature is not None:
            for band in _bands(signature):
                self._by_band[band].append(index)

    def like(self, signature: NDArray[np.uint32]) -> int | None:
        """Return the first text that was added and is similar."""
        candidates = {index for band in _bands(signature) for index in self._by_band.get(band, ())}
        return next((index for index in sorted(candidates) if self._agree(index, signature)), None)

    def _agree(self, index: int, signature: NDArray[np.uint32]) -> bool:
        return bool(np.count_nonzero(self._fingerprints[index].signature == signature) >= self._least)


def _bands(signature: NDArray[np.uint32]) -> Iterator[tuple[int, bytes]]:
    for band, rows in enumerate(signature.reshape(_BANDS, -1)):
        yield band, rows.tobytes()
