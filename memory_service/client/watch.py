"""One thread that looks after everything under way, every few milliseconds."""

from __future__ import annotations

import threading
import time
from typing import Protocol

_LINGER_S = 1.0  # goes on looking after the last one has ended, so that the next need not wake the thread


class Watched(Protocol):
    """Something that takes time."""

    def check(self, now: float) -> None:
        """Do what is due at this moment of the monotonic clock."""


class Watch:
    """Checks what was added until it is removed. Adding and removing cost a dictionary entry each.

    Sleeping until the next deadline would wake the thread for nearly every lookup, since the newest is due first.
    """

    def __init__(self, tick_s: float) -> None:
        self._tick_s = tick_s
        self._items: dict[int, Watched] = {}
        self._wake = threading.Event()
        self._idle = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="memory-watch", daemon=True)
        self._thread.start()

    def add(self, item: Watched) -> None:
        """Check an item from now on."""
        self._items[id(item)] = item
        if self._idle:
            self._wake.set()

    def remove(self, item: Watched) -> None:
        """Check it no more."""
        self._items.pop(id(item), None)

    def close(self) -> None:
        """End the thread; nothing is checked any more."""
        self._closed = True
        self._wake.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        quiet_since = time.monotonic()
        while not self._closed:
            now = time.monotonic()
            if self._items:
                quiet_since = now
                self._check(now)
            elif now - quiet_since > _LINGER_S:
                self._rest()
            time.sleep(self._tick_s)

    def _check(self, now: float) -> None:
        for item in list(self._items.values()):
            if self._closed:
                return
            item.check(now)

    def _rest(self) -> None:
        self._wake.clear()
        self._idle = True
        if not self._items and not self._closed:
            self._wake.wait()
        self._idle = False
