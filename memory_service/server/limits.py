"""Limits on what one client, and all clients together, may have under way at the doors of a shard."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from urllib.parse import unquote

import grpc

from memory_service.errors import ResourceExhausted
from memory_service.protocol.messages import MAX_MESSAGE_BYTES

_EVERYONE = "all clients"
_MAPPED_IPV4 = re.compile(r"ipv6:\[::ffff:([0-9.]+)\]")


@dataclass(frozen=True)
class DoorLimits:
    """Limits of a shard's doors, beyond which a call is refused with RESOURCE_EXHAUSTED.

    A client is a name in a certificate under mutual TLS, and otherwise a host: the processes of a host share its
    limits, and hosts behind one proxy or address translation count as one. The defaults suit hosts with hundreds of
    client processes; lower `streams` where a container may have fewer threads.

    Raises:
        ValueError: A limit is not above 0.
    """

    streams: int = 4096
    """Streams of rows open at once, one for each client process; each takes a thread and about 0.25 MiB."""
    streams_per_client: int = 1024
    """Streams of rows that one client, a host or a certificate's name, may have open."""
    request_bytes_per_client: int = 2 << 30
    """Bytes of row ids being read and of rows being sent, over all streams of one client."""
    control_calls: int = 128
    """Calls under way at the control door, each with a thread."""
    control_calls_per_client: int = 64
    """Calls that one client may have under way at the control door."""
    control_message_bytes: int = MAX_MESSAGE_BYTES
    """Bytes of the largest message that the control door takes."""
    control_message_seconds: float = 20.0
    """Seconds that a client of the control door may take to send a message."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name}: {value} must be above 0")


class Quota:
    """A limit on the amount of something that each client may hold. Safe to use from several threads."""

    def __init__(self, shard: str, limits: DoorLimits, field: str, held: str, remedy: str) -> None:
        """Make the quota of one of `limits`.

        Args:
            shard: name of the shard in errors.
            limits: where the limit stands.
            field: its field.
            held: what errors say that a client holds, with {client}, {held} and {amount} to be filled in.
            remedy: what errors tell the client to do.
        """
        self._shard = shard
        self._field = field
        self._limit = getattr(limits, field)
        self._text = held
        self._remedy = remedy
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()

    @contextmanager
    def held(self, client: str, amount: int = 1) -> Iterator[None]:
        """Hold an amount for as long as the context lasts; errors as in `take`."""
        give_back = self.take(client, amount)
        try:
            yield
        finally:
            give_back()

    def take(self, client: str, amount: int = 1) -> Callable[[], None]:
        """Hold an amount.

        Returns:
            The function that gives the amount back.

        Raises:
            ResourceExhausted: the client would hold more than the limit.
        """
        with self._lock:
            held = self._held[client]
            if held + amount > self._limit:
                self._forget_if_none(client)
                raise ResourceExhausted(self._refusal(client, held, amount))
            self._held[client] += amount
        return lambda: self._give_back(client, amount)

    @property
    def is_idle(self) -> bool:
        """Whether no client holds anything."""
        return not self._held

    def _refusal(self, client: str, held: int, amount: int) -> str:
        return (
            f"{self._shard}: {self._text.format(client=client, held=held, amount=amount)}, the limit is "
            f"{self._limit:,} ({self._field}): {self._remedy}, or start the shard with a higher {self._field}"
        )

    def _give_back(self, client: str, amount: int) -> None:
        with self._lock:
            self._held[client] -= amount
            self._forget_if_none(client)

    def _forget_if_none(self, client: str) -> None:
        if not self._held[client]:
            del self._held[client]  # hosts that have left would pile up otherwise


class Admission:
    """Counts what is under way at the doors of a shard. Safe to use from several threads."""

    def __init__(self, shard: str, limits: DoorLimits) -> None:
        open_streams, fewer = "{held:,} streams of {client} are open", "use fewer client processes"
        asked = "{amount:,} bytes of rows requested while {held:,} are under way to {client}"
        calls = "{held:,} control calls of {client} are under way"
        self._streams = Quota(shard, limits, "streams", open_streams, fewer)
        self._client_streams = Quota(shard, limits, "streams_per_client", open_streams, fewer)
        self._bytes = Quota(shard, limits, "request_bytes_per_client", asked, "ask for fewer at a time")
        self._calls = Quota(shard, limits, "control_calls_per_client", calls, "try again later")

    @contextmanager
    def stream(self, client: str) -> Iterator[Visitor]:
        """Hold a stream of a client.

        Raises:
            ResourceExhausted: the client, or all clients together, have as many as allowed.
        """
        with self._streams.held(_EVERYONE), self._client_streams.held(client):
            yield Visitor(self, client)

    def request(self, client: str, size: int) -> AbstractContextManager[None]:
        """Hold the bytes of a request and its reply.

        Raises:
            ResourceExhausted: the client has as much under way as allowed.
        """
        return self._bytes.held(client, size)

    def call(self, client: str) -> Callable[[], None]:
        """Hold a call of the control door.

        Returns:
            The function that gives the call back.

        Raises:
            ResourceExhausted: the client has as many under way as allowed.
        """
        return self._calls.take(client)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return all(quota.is_idle for quota in (self._streams, self._client_streams, self._bytes, self._calls))


class Visitor:
    """A client with a stream of rows."""

    def __init__(self, admission: Admission, client: str) -> None:
        self._admission = admission
        self._client = client

    def request(self, size: int) -> AbstractContextManager[None]:
        """Hold the bytes of a request and its reply; errors as in Admission.request."""
        return self._admission.request(self._client, size)


def client_of(context: grpc.ServicerContext) -> str:
    """Return the name by which limits know the client of a call.

    It is the name in the client's certificate under mutual TLS, or else its host: an IPv4 host alike whether the shard
    listens on IPv4 or IPv6.
    """
    for identity in context.peer_identities() or ():
        return identity.decode(errors="replace")
    return host_of(context.peer())


def host_of(peer: str) -> str:
    """The host in an address as gRPC writes it: "ipv4:10.0.0.7:51234" or "ipv6:%5Bfd00::7%5D:51234"."""
    return _MAPPED_IPV4.sub(r"ipv4:\1", re.sub(r":\d+$", "", unquote(peer)))
