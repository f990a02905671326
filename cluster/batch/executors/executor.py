"""The executor interface of a batch job, and its implementation in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from reasoning.request import Request, Result

if TYPE_CHECKING:
    from cluster.workers.worker import ReasoningWorker
    from reasoning.engine.config import EngineStats


class Executor(Protocol):
    """Takes chunks of requests and returns their results, a chunk at a time, in any order."""

    workers: int
    """Number of chunks that can be generated at once."""
    outlives_workers: bool
    """Whether this process survives the death of what runs a chunk."""

    def has_room(self) -> bool:
        """Whether another chunk would start soon."""

    def submit(self, chunk: int, requests: Sequence[Request]) -> None:
        """Queue a chunk under a number that the caller chooses."""

    def next_done(self) -> tuple[int, list[Result]]:
        """Wait for any submitted chunk. Returns its number, and a result for each of its requests in any order."""

    def stats(self) -> list[EngineStats]:
        """Return the counters of every engine."""


class InProcessExecutor:
    """Runs chunks on a worker in this process, while the caller waits for them."""

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
        """Generate the oldest chunk. Returns its number and results."""
        chunk, requests = self._queue.popleft()
        return chunk, self._worker.generate(requests)

    def stats(self) -> list[EngineStats]:
        """Return the worker's counters."""
        return self._worker.stats()
