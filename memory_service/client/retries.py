"""A background thread that refreshes the placement once per round and lets all waiting lookups go on."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

from memory_service.client.lookup import RefreshPlacement
from memory_service.client.pending import PendingLookup
from memory_service.control.shard_directory import ShardDirectory
from memory_service.errors import MemoryServiceError

_PAUSE_S = 0.01  # before the second round, then doubled: shards activate a new placement one after the other
_REFRESH_S = 1.0

Resume = Callable[[PendingLookup, MemoryServiceError | None], None]
"""Told of each lookup whose placement was refreshed, and of the error if it could not be."""


class Retries:
    """Refreshes placements that are outdated, or of which no shard could answer.

    However many lookups fail at once, one thread reads the placement from the shards, once a round.
    """

    def __init__(self, directory: ShardDirectory, resume: Resume) -> None:
        self._directory = directory
        self._resume = resume
        self._queue: queue.SimpleQueue[tuple[RefreshPlacement, PendingLookup | None] | None] = queue.SimpleQueue()
        self._outdated = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="memory-retry", daemon=True)
        self._thread.start()

    def add(self, refresh: RefreshPlacement, pending: PendingLookup) -> None:
        """Refresh the placement, then let a lookup go on."""
        self._queue.put((refresh, pending))

    def refresh(self, epoch: int) -> None:
        """Refresh the placement in the background: there is a newer one than `epoch`."""
        if epoch > self._outdated:
            self._outdated = epoch
            self._queue.put((RefreshPlacement(epoch, 1), None))

    def close(self) -> None:
        """End the thread; lookups that wait for it are not resumed."""
        self._closed = True
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while not self._closed:
            batch = [self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get())
            if not self._closed:
                self._retry([item for item in batch if item is not None])

    def _retry(self, batch: Sequence[tuple[RefreshPlacement, PendingLookup | None]]) -> None:
        rounds = min((refresh.rounds for refresh, pending in batch if pending is not None), default=1)
        if rounds > 1:
            time.sleep(_PAUSE_S * 2 ** (rounds - 2))
        error = self._refresh(max(refresh.epoch for refresh, _ in batch))
        for _, pending in batch:
            if pending is not None:
                self._resume(pending, error)

    def _refresh(self, epoch: int) -> MemoryServiceError | None:
        try:
            self._directory.refresh(epoch, _REFRESH_S)
        except MemoryServiceError as error:
            return error
        return None
