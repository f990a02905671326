"""Who generates: one interface over an engine in this process and a set of Ray actors."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from reasoning.request import Request, Result

if TYPE_CHECKING:
    from cluster.workers.worker import ReasoningWorker
    from reasoning.engine.config import EngineStats


class Executor(Protocol):
    """Takes chunks of requests and hands back their results, a chunk at a time, in any order."""

    workers: int
    """Chunks that can be worked on at once."""
    outlives_workers: bool
    """Whether this process goes on when what runs a chunk is killed."""

    def has_room(self) -> bool:
        """Whether another chunk would soon be worked on."""

    def submit(self, chunk: int, requests: Sequence[Request]) -> None:
        """Queue a chunk under a number of the caller's choice."""

    def next_done(self) -> tuple[int, list[Result]]:
        """Wait for any submitted chunk; its number, and one result for each request, in any order."""

    def stats(self) -> list[EngineStats]:
        """Counters of every engine."""


class InProcessExecutor:
    """One worker, here. A chunk is worked on when it is waited for."""

    workers = 1
    outlives_workers = False

    def __init__(self, worker: ReasoningWorker) -> None:
        self._worker = worker
        self._queue: deque[tuple[int, Sequence[Request]]] = deque()

    def has_room(self) -> bool:
        """Whether nothing is queued."""
        return not self._queue

    def submit(self, chunk: int, requests: Sequence[Request]) -> None:
        """Queue a chunk."""
        self._queue.append((chunk, requests))

    def next_done(self) -> tuple[int, list[Result]]:
        """Generate the oldest chunk."""
        chunk, requests = self._queue.popleft()
        return chunk, self._worker.generate(requests)

    def stats(self) -> list[EngineStats]:
        """The worker's counters."""
        return self._worker.stats()
