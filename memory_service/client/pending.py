"""A lookup under way: its state, the buffer in which its rows land, and the future in which it ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from memory_service.client.lookup import Action, Keep, Lookup, ShardRequest
from memory_service.client.stream import RowRequest, Stream
from memory_service.errors import MemoryServiceError
from memory_service.memory import Rows
from memory_service.tables.distinct import Distinct

Event = Callable[[Lookup], list[Action]]
"""Reports an event to the state of a lookup."""


class RowsFuture(Future[Rows]):
    """The outcome of a lookup. In a process forked from the one that asked, it raises instead of waiting for ever."""

    def __init__(self) -> None:
        super().__init__()
        self._process = os.getpid()

    def result(self, timeout: float | None = None) -> Rows:
        """Wait for the rows, see Future.result."""
        self._check_process()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the lookup to end, see Future.exception."""
        self._check_process()
        return super().exception(timeout)

    def _check_process(self) -> None:
        if os.getpid() != self._process and not self.done():
            raise forked(self._process)


def forked(process: int) -> MemoryServiceError:
    """The error for using a client, or its futures, in a process forked from the one that connected it."""
    return MemoryServiceError(
        f"this memory client belongs to process {process} and its threads do not exist in process {os.getpid()}, which "
        "was forked from it: connect a new client in the forked process"
    )


class PendingLookup:
    """Drives the state of a lookup from several threads, one event at a time."""

    def __init__(
        self,
        state: Lookup,
        asked: Distinct,
        started: float,
        future: RowsFuture | None = None,
        buffer: NDArray[np.uint8] | None = None,
    ) -> None:
        """Begin with nothing requested.

        Args:
            state: what was requested, and what follows from events.
            asked: the row ids.
            started: moment of the monotonic clock at which the caller asked.
            future: the outcome; None for a new one.
            buffer: room for the distinct rows, some of which are in place already; None while there are none.
        """
        self.state = state
        self.asked = asked
        self.started = started
        self.future = RowsFuture() if future is None else future
        self._lock = threading.Lock()
        self._buffer = buffer
        self._inverse: NDArray[np.int64] | None = None
        self._sent: dict[RowRequest, Stream] = {}

    def begin(
        self,
        now: float,
        buffer: NDArray[np.uint8] | None = None,
        hits: NDArray[np.bool_] | None = None,
        version: int | None = None,
    ) -> Sequence[Action]:
        """Start an attempt in a new buffer, in which the rows of `hits` are in place already; see Lookup.begin."""
        with self._lock:
            self._buffer, self._inverse = buffer, None
            self._forget_sent()
            return self._actions(lambda state: state.begin(now, hits, version))

    def arrange(self, attempt: int) -> Sequence[Action]:
        """Compute where in the buffer each requested row is; call once an attempt, after its requests were sent."""
        inverse, order = self.asked.inverse(), self.state.order
        if order is not None:
            rank = np.empty(len(order), np.int64)
            rank[order] = np.arange(len(order))
            inverse = rank[inverse]
        with self._lock:
            if attempt == self.state.attempt:
                self._inverse = inverse
            return self._actions(lambda state: state.arranged(attempt))

    def report(self, event: Event, parts: Sequence[NDArray[np.uint8]] = ()) -> Sequence[Action]:
        """Report an event to the state, copy the rows into place if they are to be kept, and return the actions."""
        with self._lock:
            actions = self._actions(event)
            for action in actions:
                if isinstance(action, Keep):
                    self._keep(action.request, parts)
            return actions

    def remember(self, request: RowRequest, stream: Stream) -> None:
        """Remember on which stream a request was sent, so that it can be forgotten there."""
        with self._lock:
            if not self.state.over:
                self._sent[request] = stream
                return
        stream.forget(request)

    def streams(self) -> set[Stream]:
        """Streams on which requests of this lookup were sent."""
        with self._lock:
            return set(self._sent.values())

    def finish(self) -> None:
        """End in the rows."""
        buffer, inverse = self._buffer, self._inverse
        assert inverse is not None, "a lookup is complete once its inverse is computed"
        if buffer is None:
            buffer = np.empty((0, self.state.spec.row_bytes), np.uint8)
        self._release()
        with suppress(InvalidStateError):  # the caller cancelled the future
            self.future.set_result(Rows(buffer, inverse))

    def fail(self, error: MemoryServiceError) -> None:
        """End in an error."""
        self._release()
        with suppress(InvalidStateError):  # the caller cancelled the future
            self.future.set_exception(error)

    def _actions(self, event: Event) -> list[Action]:
        try:
            return event(self.state)
        except MemoryServiceError as error:  # such as a placement that lacks the table
            return self.state.abort(error)

    def _keep(self, request: ShardRequest, parts: Sequence[NDArray[np.uint8]]) -> None:
        if self._buffer is None:
            self._buffer = np.empty((len(self.state.ids), self.state.spec.row_bytes), np.uint8)
        low = 0
        for rows in parts:
            high = low + len(rows)
            if isinstance(request.places, slice):
                self._buffer[request.places.start + low : request.places.start + high] = rows
            else:
                self._buffer[request.places[low:high]] = rows
            low = high

    def _release(self) -> None:
        """Let go of the buffer, which is too large to wait for the garbage collector, and of requests under way."""
        with self._lock:
            self._buffer = self._inverse = None
            self._forget_sent()

    def _forget_sent(self) -> None:
        for request, stream in self._sent.items():
            stream.forget(request)
        self._sent.clear()
