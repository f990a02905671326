"""Parts of chunks, and what follows when one ends the worker that runs it: tried again, then halved, then given up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from reasoning.request import Request, RequestFailure

LINE_ATTEMPTS = 3
"""Times that a line by itself may end its worker before it gets an error record."""


@dataclass(frozen=True)
class Part:
    """Requests of one chunk that run together."""

    chunk: int
    requests: tuple[Request, ...]
    retries: int
    """Times that it is still tried again as it is."""
    died_on: int | None = None
    """The worker that it ended last; another one should try next."""

    @property
    def suspect(self) -> bool:
        """Whether it may be what ended a worker. It runs alone, so that another death is its own for certain."""
        return self.died_on is not None

    @classmethod
    def of(cls, chunk: int, requests: Sequence[Request]) -> Part:
        """A whole chunk, which is tried again once: its worker may have died of something else."""
        return cls(chunk, tuple(requests), LINE_ATTEMPTS - 1 if len(requests) == 1 else 1)

    def after_death(self, worker: int) -> list[Part]:
        """What to run instead, now that it ended a worker: itself, or its halves; nothing for a line to give up."""
        if self.retries:
            return [dataclasses.replace(self, retries=self.retries - 1, died_on=worker)]
        if len(self.requests) == 1:
            return []
        middle = len(self.requests) // 2
        return [self._half(some, worker) for some in (self.requests[:middle], self.requests[middle:])]

    def _half(self, requests: tuple[Request, ...], worker: int) -> Part:
        """One of the halves is to blame, so that it is halved again at once."""
        return Part(self.chunk, requests, LINE_ATTEMPTS - 1 if len(requests) == 1 else 0, worker)

    def __str__(self) -> str:
        first, last = self.requests[0].id, self.requests[-1].id
        return f"line {first}" if first == last else f"lines {first} to {last}"


def given_up(number: str, reason: str) -> RequestFailure:
    """The result of a line that ended its worker as often as it may."""
    message = f"ended its worker {LINE_ATTEMPTS} times ({reason}) and was given up; shorten or mend it"
    return RequestFailure(number, "line", message)
