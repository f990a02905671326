"""Parts of chunks, and how a part that kills its worker is retried, halved, and finally given up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from reasoning.request import Request, RequestFailure

LINE_ATTEMPTS = 3
"""Number of times that a line by itself may kill its worker before it becomes an error record."""


@dataclass(frozen=True)
class Part:
    """Requests of a chunk that run together."""

    chunk: int
    requests: tuple[Request, ...]
    retries: int
    """How often it may still be retried before it is halved or given up."""
    died_on: int | None = None
    """The worker that died on it last; the retry should go to another."""

    @property
    def suspect(self) -> bool:
        """Whether it may have killed a worker. A suspect runs alone, so that the next death is certainly its own."""
        return self.died_on is not None

    @classmethod
    def of(cls, chunk: int, requests: Sequence[Request]) -> Part:
        """Make a part of a chunk, which is retried once: its worker may die of another cause."""
        return cls(chunk, tuple(requests), LINE_ATTEMPTS - 1 if len(requests) == 1 else 1)

    def after_death(self, worker: int) -> list[Part]:
        """Return what to run after it killed a worker: itself, its halves, or nothing if it is a line to give up."""
        if self.retries:
            return [dataclasses.replace(self, retries=self.retries - 1, died_on=worker)]
        if len(self.requests) == 1:
            return []
        middle = len(self.requests) // 2
        return [self._half(half, worker) for half in (self.requests[:middle], self.requests[middle:])]

    def _half(self, requests: tuple[Request, ...], worker: int) -> Part:
        """Make a part of a half, which is halved again at once if it kills its worker."""
        return Part(self.chunk, requests, LINE_ATTEMPTS - 1 if len(requests) == 1 else 0, worker)

    def __str__(self) -> str:
        first, last = self.requests[0].id, self.requests[-1].id
        return f"line {first}" if first == last else f"lines {first} to {last}"


def given_up(number: str, reason: str) -> RequestFailure:
    """Return the result of a line that killed its worker `LINE_ATTEMPTS` times."""
    message = f"killed its worker {LINE_ATTEMPTS} times ({reason}) and was given up; shorten or change it"
    return RequestFailure(number, "line", message)
