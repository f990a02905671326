"""Who generates: one interface over an engine in this process and a set of Ray actors."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from reasoning.engine import Completion, Request, RequestFailure

if TYPE_CHECKING:
    from reasoning.engine import Engine, EngineStats

Outcome = Completion | RequestFailure


class Executor(Protocol):
    """Takes chunks of requests and hands back their outcomes, a chunk at a time, in any order."""

    workers: int
    """How many chunks can be worked on at once."""

    def has_room(self) -> bool:
        """Whether another chunk would soon be worked on."""

    def submit(self, chunk: int, requests: Sequence[Request]) -> None:
        """Queue a chunk under a number of the caller's choice."""

    def next_done(self) -> tuple[int, list[Outcome]]:
        """Wait for any submitted chunk; its number, and one outcome for each request in any order."""

    def stats(self) -> list[EngineStats]:
        """Counters of every worker's engine."""


class InProcessExecutor:
    """One engine, here. A chunk is worked on when it is waited for."""

    workers = 1

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._queue: deque[tuple[int, Sequence[Request]]] = deque()

    def has_room(self) -> bool:
        """Whether nothing is queued."""
        return not self._queue

    def submit(self, chunk: int, requests: Sequence[Request]) -> None:
        """Queue a chunk."""
        self._queue.append((chunk, requests))

    def next_done(self) -> tuple[int, list[Outcome]]:
        """Generate the oldest chunk."""
        chunk, requests = self._queue.popleft()
        return chunk, list(self._engine.generate(requests))

    def stats(self) -> list[EngineStats]:
        """The engine's counters."""
        return [self._engine.stats()]
