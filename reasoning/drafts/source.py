"""Where drafts come from, as an engine sees it: for each sequence an object that guesses how it goes on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

KINDS = ("auto", "mtp", "ngram", "none")
"""What `EngineConfig.drafts` may be."""


class Drafter(Protocol):
    """Proposes what may follow one sequence. Proposals need not be right, only cheap: the model checks each."""

    def extend(self, tokens: Iterable[int]) -> None:
        """Take note of tokens that the sequence got."""

    def propose(self, count: int) -> list[int]:
        """Return at most `count` tokens that may follow, the nearest first; none where there is no guess."""


class ComputedDrafts:
    """Keeps what a model drafted for a sequence until it gets further tokens. Models draft for whole batches."""

    def __init__(self) -> None:
        self._drafts: list[int] = []

    def extend(self, tokens: Iterable[int]) -> None:
        """Forget the drafts, which were meant for where the sequence ended before."""
        if any(True for _ in tokens):
            self._drafts = []

    def offer(self, drafts: list[int]) -> None:
        """Keep drafts for where the sequence ends."""
        self._drafts = drafts

    def propose(self, count: int) -> list[int]:
        """Return the first `count` drafts, fewer if there are fewer."""
        return self._drafts[:count]
