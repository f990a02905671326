"""One thread that reads the placement anew, once for all whom it concerns, and lets them ask again."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from memory_service.client.lookup import Part
from memory_service.client.shard_directory import ShardDirectory
from memory_service.errors import MemoryServiceError

_PAUSE_S = 0.01  # before the second retry, then doubled: shards take up a new placement one after the other
_REFRESH_S = 1.0


class Retries:
    """Parts that no shard of the known placement could answer, and placements known to be outdated.

    However many lookups fail at once, the shards are asked for the placement by one thread, once a round.
    """

    def __init__(self, directory: ShardDirectory, again: Callable[[Part], None]) -> None:
        self._directory = directory
        self._again = again
        self._queue: queue.SimpleQueue[tuple[int, Part | None] | None] = queue.SimpleQueue()
        self._outdated = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="memory-retry", daemon=True)
        self._thread.start()

    def add(self, part: Part) -> None:
        """Ask for a part again once the placement has been read."""
        self._queue.put((part.epoch, part))

    def refresh(self, epoch: int) -> None:
        """Read the placement in the background: there is a newer one than `epoch`."""
        if epoch > self._outdated:
            self._outdated = epoch
            self._queue.put((epoch, None))

    def close(self) -> None:
        """End the thread; parts that wait fail with the client's streams or at their deadline."""
        self._closed = True
        self._queue.put(None)
        self._thread.join()
        while not self._queue.empty():
            if (item := self._queue.get()) and item[1]:
                _reject(item[1])

    def _run(self) -> None:
        while not self._closed:
            batch = [self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get())
            self._retry([item for item in batch if item is not None])

    def _retry(self, batch: list[tuple[int, Part | None]]) -> None:
        parts = [part for _, part in batch if part is not None]
        rounds = min((part.rounds for part in parts), default=1)
        if rounds > 1:
            time.sleep(_PAUSE_S * 2 ** (rounds - 2))
        error = self._refresh(max((epoch for epoch, _ in batch), default=0))
        for part in parts:
            if error is not None:
                part.lookup.reject(error)
            else:
                self._again(part)

    def _refresh(self, epoch: int) -> MemoryServiceError | None:
        try:
            self._directory.refresh(epoch, _REFRESH_S)
        except MemoryServiceError as error:
            return error
        return None


def _reject(part: Part) -> None:
    part.lookup.reject(MemoryServiceError("this client was closed"))
