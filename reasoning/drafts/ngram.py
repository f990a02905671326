"""Drafts without a model (prompt lookup): a sequence continues as it did after an earlier occurrence of its end."""

from __future__ import annotations

from collections.abc import Iterable


class NgramDrafts:
    """Proposes what followed the latest earlier occurrence of the longest n-gram that ends the sequence.

    An index finds it with a few dictionary lookups a token. It has an entry for each token and n-gram size, which is a
    few hundred bytes a token.
    """

    def __init__(self, tokens: Iterable[int] = (), longest: int = 4, shortest: int = 2):
        """Index `tokens` by their n-grams of `shortest` to `longest` tokens."""
        if not 1 <= shortest <= longest:
            raise ValueError(f"shortest: {shortest} is not from 1 to longest={longest}; use a smaller one")
        self._sizes = range(longest, shortest - 1, -1)
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> where its latest continuation begins
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens to the sequence."""
        for token in tokens:
            for ngram in self._endings():  # before the token is appended: only now they have a continuation
                self._after[ngram] = len(self._tokens)
            self._tokens.append(token)

    def _endings(self) -> list[tuple[int, ...]]:
        """Return the n-grams that end the sequence, the longest first."""
        return [tuple(self._tokens[-size:]) for size in self._sizes if size <= len(self._tokens)]

    def propose(self, count: int) -> list[int]:
        """Return `count` tokens, or none if no ending occurred before."""
        places = (self._after.get(ngram) for ngram in self._endings())
        start = next((place for place in places if place is not None), None)
        return [] if start is None else self._copy(start, count)

    def _copy(self, start: int, count: int) -> list[int]:
        """Return the tokens from `start` on, repeating them where they reach the end of the sequence."""
        period = self._tokens[start : start + count]
        return [period[i % len(period)] for i in range(count)]
