"""Ending calls to shards that another thread has under way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from memory_service.control.client import ControlClient
from memory_service.errors import MemoryServiceError


class Cancelled(MemoryServiceError):  # noqa: N818 - the name says what happened, as in memory_service.errors
    """A call that was ended before its shard had answered; the shard may go on with what it was asked to do."""


class Cancellation:
    """Ends the calls that it covers, those under way and those to come. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._covered: set[ControlClient] = set()
        self._cancelled = False

    def cancel(self) -> None:
        """End all calls that are covered."""
        with self._lock:
            self._cancelled = True
            for control in self._covered:
                control.close()  # ends the calls on its channel

    @contextmanager
    def covering(self, control: ControlClient) -> Iterator[None]:
        """Let `cancel` end the calls that are made with a client in this context, by closing it.

        Raises:
            Cancelled: `cancel` was called before the context was left.
        """
        with self._lock:
            if self._cancelled:
                raise Cancelled(f"the call to {control.address} was cancelled")
            self._covered.add(control)
        try:
            yield
        except Exception as error:
            if self._cancelled:
                raise Cancelled(f"the call to {control.address} was cancelled") from error
            raise
        finally:
            with self._lock:
                self._covered.discard(control)
