"""Callers that iterate over an engine's events, each of whom gets those of its own requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager

from reasoning.request import Delta, Event


class Call:
    """One iteration over `Engine.events`."""

    def __init__(self) -> None:
        self.unfinished: set[str] = set()
        """Ids of its requests that the engine still works on."""
        self.events: deque[Event] = deque()
        """Events that it has not handed out yet: other calls step the engine too."""


class Calls:
    """Knows which requests belong to which call. The others belong to whoever steps the engine."""

    def __init__(self, cancel: Callable[[str], object]) -> None:
        """`cancel` ends a request by its id, and calls `forget`."""
        self._cancel = cancel
        self._owners: dict[str, Call] = {}
        self._working = False
        self._left: list[Call] = []

    @property
    def requests(self) -> Set[str]:
        """Ids of the requests that belong to a call."""
        return self._owners.keys()

    def own(self, call: Call, request_id: str) -> None:
        """Make a request, just added, a call's own."""
        self._owners[request_id] = call
        call.unfinished.add(request_id)

    def forget(self, request_id: str) -> None:
        """Take note that a request has ended."""
        call = self._owners.pop(request_id, None)
        if call is not None:
            call.unfinished.remove(request_id)

    def deliver(self, events: list[Event]) -> list[Event]:
        """Give each call the events of its requests, and return the rest."""
        rest: list[Event] = []
        for event in events:
            call = self._owners.get(event.id)
            (rest if call is None else call.events).append(event)
            if not isinstance(event, Delta):
                self.forget(event.id)
        return rest

    def leave(self, call: Call) -> None:
        """Cancel what is left of a call that nobody iterates over any more."""
        if self._working:
            self._left.append(call)
            return
        for request_id in list(call.unfinished):
            self._cancel(request_id)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Put off cancelling while the engine is at work: the garbage collector closes iterators at any moment."""
        self._working = True
        try:
            yield
        finally:
            self._working = False
            while self._left:
                self.leave(self._left.pop())
