"""Calls from any thread, taken by one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

from memory_service.errors import ShardUnavailable

_Answer = TypeVar("_Answer")


class Mailbox:
    """A queue of functions, which the thread that owns the mailbox runs; other threads may wait for their results."""

    def __init__(self) -> None:
        self._mail: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._asking = threading.Lock()
        self._closed = False

    def post(self, run: Callable[[], None]) -> None:
        """Have the owner run a function."""
        self._mail.put(run)

    def ask(self, take: Callable[[Future[_Answer]], None]) -> _Answer:
        """Have the owner take a future, and wait until it is resolved.

        Raises:
            ShardUnavailable: the mailbox is closed.
        """
        answer: Future[_Answer] = Future()
        with self._asking:
            if self._closed:
                raise stopping()
            self.post(lambda: take(answer))
        return answer.result()

    def read(self, timeout_s: float) -> None:
        """Wait for mail, at most so long; run all of it. For the owner."""
        with suppress(Empty):
            self._mail.get(timeout=timeout_s)()
            while True:
                self._mail.get_nowait()()

    def close(self, run: Callable[[], None]) -> None:
        """Accept no further futures, and have the owner run a last function after those that it was given."""
        with self._asking:
            self._closed = True
            self.post(run)


def stopping() -> ShardUnavailable:
    """The error of callers whose pool stops before it has answered."""
    return ShardUnavailable("the memory pool is being stopped")
