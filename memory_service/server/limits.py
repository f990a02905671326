"""What one client, and all of them together, may have under way at the doors of a shard."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from pyarrow import flight

from memory_service.errors import ResourceExhausted
from memory_service.protocol.messages import MAX_MESSAGE_BYTES


@dataclass(frozen=True)
class DoorLimits:
    """Limits of a shard's doors; beyond them a call is refused with RESOURCE_EXHAUSTED and nothing else suffers.

    A client is a certificate's name under mutual TLS, otherwise a host: its processes share what is the host's.

    What these do not bound is one message at the rows door: Arrow Flight takes messages of any length, for a moment
    with three times their size in memory, and offers no setting. A stream's token is checked before its first message
    is read, that of Flight's other methods after: where a token is the only lock, a stranger can make a shard read,
    and drop, such a message. Mutual TLS keeps strangers from sending any.
    """

    control_message_bytes: int = MAX_MESSAGE_BYTES
    """One message of the control door."""
    control_calls: int = 64
    """Calls at the control door, those that wait for a thread included."""
    streams: int = 1024
    """Streams of the rows door; each has a thread."""
    streams_per_client: int = 256
    request_bytes_per_client: int = 2 << 30
    """Row ids read and replies being built or written, by all streams of a client."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"{name}={value} must be above 0")


class Admission:
    """Counts what is under way at the rows door. Safe to use from several threads."""

    def __init__(self, shard: str, limits: DoorLimits) -> None:
        self._shard = shard
        self._limits = limits
        self._lock = threading.Lock()
        self._streams: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    @contextmanager
    def stream(self, client: str) -> Iterator[Visitor]:
        """Hold a stream of a client, or raise ResourceExhausted."""
        with self._lock:
            self._refuse_beyond(self._streams.total(), self._limits.streams, "streams of all clients are open")
            self._refuse_beyond(self._streams[client], self._limits.streams_per_client, f"streams of {client} are open")
            self._streams[client] += 1
        try:
            yield Visitor(self, client)
        finally:
            self._give_back(self._streams, client, 1)

    @contextmanager
    def request(self, client: str, size: int) -> Iterator[None]:
        """Hold the bytes of a request and its reply, or raise ResourceExhausted."""
        limit = self._limits.request_bytes_per_client
        with self._lock:
            if (held := self._bytes[client]) + size > limit:
                raise ResourceExhausted(
                    f"{self._shard}: {size:,} bytes of rows asked for while {held:,} are under way to {client}, "
                    f"the limit is {limit:,}: ask for fewer at a time"
                )
            self._bytes[client] += size
        try:
            yield
        finally:
            self._give_back(self._bytes, client, size)

    def _refuse_beyond(self, held: int, limit: int, what: str) -> None:
        if held >= limit:
            raise ResourceExhausted(f"{self._shard}: {held} {what}, the limit is {limit}: close some")

    def _give_back(self, counter: Counter[str], client: str, amount: int) -> None:
        with self._lock:
            counter[client] -= amount
            if not counter[client]:
                del counter[client]  # else every host that ever called would stay


class Visitor:
    """A client with a stream."""

    def __init__(self, admission: Admission, client: str) -> None:
        self._admission = admission
        self._client = client

    def request(self, size: int) -> AbstractContextManager[None]:
        """Hold the bytes of a request and its reply, or raise ResourceExhausted."""
        return self._admission.request(self._client, size)


def client_of(context: flight.ServerCallContext) -> str:
    """Who calls: the name in its certificate, or its host without the port, "ipv4:10.0.0.7"."""
    name = context.peer_identity().decode(errors="replace")
    return name or re.sub(r":\d+$", "", context.peer())
