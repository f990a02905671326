"""Concurrent iterations over an engine's events, each of which gets the events of its own requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager

from reasoning.request import Delta, Event


class Call:
    """One iteration over `Engine.events`."""

    def __init__(self) -> None:
        self.unfinished: set[str] = set()
        """Ids of the call's requests that have not ended."""
        self.events: deque[Event] = deque()
        """Events not yielded yet. Other calls step the engine too."""


class Calls:
    """The owners of requests. A request without an owner belongs to the caller of `Engine.step`."""

    def __init__(self, cancel: Callable[[str], object]) -> None:
        """Begin without owners. `cancel` cancels the request with an id, and calls `forget`."""
        self._cancel = cancel
        self._owners: dict[str, Call] = {}
        self._working = False
        self._left: list[Call] = []

    @property
    def requests(self) -> Set[str]:
        """Ids of the requests that have an owner."""
        return self._owners.keys()

    def own(self, call: Call, request_id: str) -> None:
        """Make a call the owner of a new request."""
        self._owners[request_id] = call
        call.unfinished.add(request_id)

    def forget(self, request_id: str) -> None:
        """Drop the owner of a request that has ended."""
        call = self._owners.pop(request_id, None)
        if call is not None:
            call.unfinished.remove(request_id)

    def deliver(self, events: list[Event]) -> list[Event]:
        """Give owners the events of their requests, and return the other events."""
        rest: list[Event] = []
        for event in events:
            call = self._owners.get(event.id)
            (rest if call is None else call.events).append(event)
            if not isinstance(event, Delta):
                self.forget(event.id)
        return rest

    def leave(self, call: Call) -> None:
        """Cancel the unfinished requests of an iteration that has ended."""
        if self._working:
            self._left.append(call)
            return
        for request_id in list(call.unfinished):
            self._cancel(request_id)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Defer cancellation until the engine is done: the garbage collector may close an iterator at any moment."""
        self._working = True
        try:
            yield
        finally:
            self._working = False
            while self._left:
                self.leave(self._left.pop())
