"""The outcome of a lookup in C++: the thread that waits for it is the one that reads the rows from the network."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

from memory_service.client.pending import RowsFuture
from memory_service.memory import Rows

_lock = threading.Lock()
_awaited: set[NativeRowsFuture] = set()
"""Common futures that are not done: nobody else may keep one that has a callback, and adopted lookups look for it."""


class NativeRowsFuture(RowsFuture):
    """A future that becomes a common one, which is set by other threads, once more than `result` is asked of it.

    So that a lookup which is waited for at once pays for no lock, no condition and no other thread. It is common also
    once the lookup was adopted by the state machine in Python.
    """

    _rows: Rows | None = None

    def __init__(self, native: Any = None) -> None:
        """Stand for a lookup; without one, the future is a common one from the start."""
        self._process = os.getpid()
        self._native = native
        if native is None:
            super().__init__()

    def __getattr__(self, name: str) -> Any:
        """Become a common future when the fields of one are asked for; these are only missing before."""
        if name.startswith("__") or self.__dict__.get("_native") is None:
            raise AttributeError(name)
        self._become_common()
        return object.__getattribute__(self, name)

    def result(self, timeout: float | None = None) -> Rows:
        """Wait for the rows, see Future.result."""
        if self._rows is not None:
            return self._rows
        self._check_process()
        native = self._native  # before the fields of a common future, which come before it goes
        if "_condition" in self.__dict__:
            return super().result(timeout)
        started = time.monotonic()
        found = native.wait(timeout)
        if found is None:  # adopted
            return super().result(None if timeout is None else max(0.0, timeout - (time.monotonic() - started)))
        rows = self._rows = Rows(*found)
        return rows

    def adopted(self) -> None:
        """Leave it to others to set the outcome: the lookup is no longer plain."""
        self._become_common()
        self._native = None

    def _check_process(self) -> None:
        if os.getpid() != self._process and not (self._native is not None and self._native.done):
            super()._check_process()

    def _become_common(self) -> None:
        with _lock:
            native = self._native
            if "_condition" in self.__dict__:
                return
            Future.__init__(self)
        _awaited.add(self)
        super().add_done_callback(_awaited.discard)
        if not native.when_done(self._settle) and native.done:
            self._settle()

    def _settle(self) -> None:
        """Set the result of a common future once the rows are there."""
        rows = self._rows or Rows(*self._native.wait(None))
        with suppress(InvalidStateError):  # the caller cancelled it
            self.set_result(rows)
