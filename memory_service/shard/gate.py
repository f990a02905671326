"""Lets memory be reused only once nobody reads it: readers are counted in and out, and a writer waits for them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class ReadGate:
    """Readers never wait for a writer, nor for each other longer than it takes to count."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._generation = 0
        self._inside: Counter[int] = Counter()  # readers by the generation in which they came in

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Count as a reader for the duration of the block."""
        with self._changed:
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
        """Wait until every reader that is inside now has left; later ones are not waited for."""
        with self._changed:
            current = self._generation
            self._generation += 1
            self._changed.wait_for(lambda: all(generation > current for generation in self._inside))
