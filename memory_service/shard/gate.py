"""A gate between the readers of a memory and its writer: readers are counted, and the writer waits until they left."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class ReadGate:
    """Counts readers. They wait for a writer only while it has the memory to itself, see `exclusive`."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._generation = 0
        self._inside: Counter[int] = Counter()  # number of readers by the generation in which they entered
        self._closed = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A context manager that counts as a reader."""
        with self._changed:
            self._changed.wait_for(lambda: not self._closed)
            generation = self._generation
            self._inside[generation] += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside[generation] -= 1
                if not self._inside[generation]:
                    del self._inside[generation]
                    self._changed.notify_all()

    def drain(self) -> None:
        """Wait until every reader that is inside now has left, but not for readers that enter later."""
        with self._changed:
            current = self._generation
            self._generation += 1
            self._changed.wait_for(lambda: all(generation > current for generation in self._inside))

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """A context manager for the one writer: no reader is inside, and those that come wait until it ends."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._inside)
        try:
            yield
        finally:
            with self._changed:
                self._closed = False
                self._changed.notify_all()
