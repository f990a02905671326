"""Sources of drafts, as an engine sees them: for each sequence an object that proposes how it continues."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

KINDS = ("auto", "mtp", "ngram", "none")
"""What `EngineConfig.drafts` may be."""


class Drafter(Protocol):
    """Proposes what may follow a sequence. Proposals need not be right, only cheap: the model verifies each."""

    def extend(self, tokens: Iterable[int]) -> None:
        """Record tokens that were appended to the sequence."""

    def propose(self, count: int) -> list[int]:
        """Return at most `count` tokens that may follow, the next one first; none without a proposal."""


class ComputedDrafts:
    """Keeps what a model drafted for a sequence until it grows. Models draft for whole batches."""

    def __init__(self) -> None:
        self._drafts: list[int] = []

    def extend(self, tokens: Iterable[int]) -> None:
        """Drop the drafts, which continued the sequence as it was before."""
        if any(True for _ in tokens):
            self._drafts = []

    def offer(self, drafts: list[int]) -> None:
        """Keep drafts that continue the sequence as it is now."""
        self._drafts = drafts

    def propose(self, count: int) -> list[int]:
        """Return the first `count` drafts, fewer if there are fewer."""
        return self._drafts[:count]
