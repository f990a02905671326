"""One thread that ends what has waited too long."""

import heapq
import threading
import time
from collections.abc import Callable


class Deadlines:
    """Calls back once a moment of the monotonic clock has passed, unless cancelled before.

    A cancelled entry lets go of its callback at once, so that a finished lookup keeps no buffer alive.
    """

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._heap: list[tuple[float, int]] = []
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._next = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="memory-deadlines", daemon=True)
        self._thread.start()

    def watch(self, deadline: float, callback: Callable[[], None]) -> int:
        """Call back at `deadline`; the key that `cancel` takes."""
        with self._wake:
            key = self._next
            self._next += 1
            self._callbacks[key] = callback
            heapq.heappush(self._heap, (deadline, key))
            if self._heap[0][1] == key:
                self._wake.notify()
        return key

    def cancel(self, key: int) -> None:
        """Forget an entry, passed or not."""
        with self._wake:
            self._callbacks.pop(key, None)

    def close(self) -> None:
        """End the thread; nothing is called back any more."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while (callback := self._wait_for_one()) is not None:
            callback()

    def _wait_for_one(self) -> Callable[[], None] | None:
        with self._wake:
            while not self._closed:
                if not self._heap:
                    self._wake.wait()
                elif (left := self._heap[0][0] - time.monotonic()) > 0:
                    self._wake.wait(left)
                elif callback := self._callbacks.pop(heapq.heappop(self._heap)[1], None):
                    return callback
            return None
