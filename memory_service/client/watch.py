"""A background thread that checks lookups under way every few milliseconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

_LINGER_S = 1.0  # keeps ticking after the last item was removed, so that the next one need not wake the thread

_Item = TypeVar("_Item")


class Watch(Generic[_Item]):
    """Checks each item from when it is added until it is removed. Both cost one dictionary operation.

    Sleeping until the next deadline instead would wake the thread for nearly every lookup: the newest is due first.
    """

    def __init__(self, tick_s: float, check: Callable[[_Item, float], None]) -> None:
        """Call `check` with each item and the moment of the monotonic clock, every `tick_s` seconds."""
        self._tick_s = tick_s
        self._check = check
        self._items: dict[int, _Item] = {}
        self._wake = threading.Event()
        self._idle = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="memory-watch", daemon=True)
        self._thread.start()

    def add(self, item: _Item) -> None:
        """Check an item from now on."""
        self._items[id(item)] = item
        if self._idle:
            self._wake.set()

    def remove(self, item: _Item) -> None:
        """Check an item no more."""
        self._items.pop(id(item), None)

    def items(self) -> list[_Item]:
        """The items that are being checked."""
        return list(self._items.values())

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
                self._check_all(now)
            elif now - quiet_since > _LINGER_S:
                self._rest()
            time.sleep(self._tick_s)

    def _check_all(self, now: float) -> None:
        for item in self.items():
            if self._closed:
                return
            self._check(item, now)

    def _rest(self) -> None:
        self._wake.clear()
        self._idle = True
        if not self._items and not self._closed:
            self._wake.wait()
        self._idle = False
