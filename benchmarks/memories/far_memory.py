"""A memory with added latency: answers are held back for a fixed time, without using the processor."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future

import numpy as np

from memory_service import Memory, MemoryStats, Rows, TableSpec
from memory_service.metrics.metrics import Sample


class FarMemory:
    """A memory whose answers come later. Close it when done: it has a thread."""

    def __init__(self, memory: Memory, delay_s: float) -> None:
        """`delay_s` is added to every lookup; zero passes answers on as they come."""
        self.delay_s = delay_s
        self._memory = memory
        self._due: list[tuple[float, int, Future[Rows], Future[Rows]]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._deliver, name="far-memory", daemon=True)
        self._thread.start()

    @property
    def specs(self) -> Mapping[str, TableSpec]:
        """The tables by name."""
        return self._memory.specs

    def lookup(self, table: str, rows: np.ndarray, timeout_s: float | None = None) -> Future[Rows]:
        """See Memory.lookup; what the memory refuses, it refuses at once."""
        answer = self._memory.lookup(table, rows, timeout_s)
        if not self.delay_s:
            return answer
        late: Future[Rows] = Future()
        answer.add_done_callback(lambda done: self._delay(done, late))
        return late

    def _delay(self, answer: Future[Rows], late: Future[Rows]) -> None:
        with self._changed:
            heapq.heappush(self._due, (time.perf_counter() + self.delay_s, next(self._numbers), answer, late))
            self._changed.notify()

    def _deliver(self) -> None:
        with self._changed:
            while self._open:
                if self._due and self._due[0][0] <= time.perf_counter():
                    _, _, answer, late = heapq.heappop(self._due)
                    _hand_over(answer, late)
                else:
                    self._changed.wait(self._due[0][0] - time.perf_counter() if self._due else None)

    def stats(self) -> MemoryStats:
        """Counters of the delayed memory."""
        return self._memory.stats()

    def collect(self) -> Iterator[Sample]:
        """Metrics of the delayed memory."""
        return self._memory.collect()

    def close(self) -> None:
        """End the thread and drop pending answers. The delayed memory stays open, others may use it."""
        with self._changed:
            self._open = False
            self._changed.notify()
        self._thread.join()


def _hand_over(answer: Future[Rows], late: Future[Rows]) -> None:
    error = answer.exception()
    if error is not None:
        late.set_exception(error)
    else:
        late.set_result(answer.result())
