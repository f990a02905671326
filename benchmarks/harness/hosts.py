"""Several hosts on this machine: network namespaces with addresses of their own, and a network between them.

with network(2, round_trip_s=0.002, gbit_s=1) as net:
    with net.hosts[0].popen([sys.executable, "-m", ...]):  # runs there, reachable at net.hosts[0].address
        net.set(round_trip_s=0.02, loss=0.01)
        net.stall(net.hosts[0], seconds=3)

This process, like everything else outside of the hosts, is one more member of the network: `net.here`. Members send
through the kernel's virtual interfaces and `tc netem`; where the kernel has no netem, `benchmarks.harness.slow_network`
carries their packets. Needs root and the commands `ip` and `tc` of iproute2.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.harness.namespaces import Bridge, Subnet, has_netem, subnet
from benchmarks.harness.slow_network import SlowNetwork

_MOST_HOSTS = 250


@dataclass(frozen=True)
class Host:
    """Where commands run as if on another machine."""

    address: str
    """Its address."""
    command: Sequence[str]
    """Put before a command, runs it there."""

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a command there; `options` are those of `subprocess.Popen`."""
        return subprocess.Popen([*self.command, *command], **options)


class Links(Protocol):
    """What carries packets between members; 0 is `Network.here`, and the hosts follow."""

    def set(self, one_way_s: float, loss: float) -> None:
        """Delay packets that are sent from now on, and lose this share of them."""

    def cut(self, member: int, off: bool) -> None:
        """Drop all packets from and to a member, or no longer."""

    def close(self) -> None:
        """End the processes that this takes."""


class Network:
    """Hosts and the network between them; `network` makes it.

    Attributes:
        here: where this process runs, with the address by which the hosts reach it.
        hosts: the other members.
        backend: what carries the packets: "netem", "user-space", or "veth" if conditions cannot change.
    """

    def __init__(self, members: Sequence[Host], backend: str, links: Links) -> None:
        self.here = members[0]
        self.hosts = tuple(members[1:])
        self.backend = backend
        self._links = links
        self._lock = threading.Lock()
        self._stalls: dict[Host, threading.Timer] = {}

    def set(self, round_trip_s: float = 0.0, loss: float = 0.0) -> None:
        """From now on, have these conditions between any two members, as `network` explains them.

        Raises:
            ValueError: a condition is out of range.
            RuntimeError: the network was made with `adjustable=False`, without delay and loss.
        """
        _check(round_trip_s, loss)
        if self.backend == "veth":
            raise RuntimeError("conditions cannot change: the network was made with adjustable=False")
        with self._lock:
            self._links.set(round_trip_s / 2, loss)

    def stall(self, host: Host, seconds: float) -> None:
        """Drop all packets from and to a host, from now on and for so long; returns at once.

        A later stall of the same host takes the place of an earlier one.
        """
        if earlier := self._stalls.get(host):
            _end(earlier)
        self._cut(host, True)
        self._stalls[host] = threading.Timer(seconds, self._cut, (host, False))
        self._stalls[host].start()

    def close(self) -> None:
        """Forget about hosts that are still to be let back, and carry no more packets."""
        for stall in self._stalls.values():
            _end(stall)
        self._links.close()

    def _cut(self, host: Host, off: bool) -> None:
        with self._lock:
            self._links.cut(1 + self.hosts.index(host), off)


@contextlib.contextmanager
def network(
    hosts: int,
    round_trip_s: float = 0.0,
    loss: float = 0.0,
    gbit_s: float | None = None,
    *,
    adjustable: bool = True,
) -> Iterator[Network]:
    """Make hosts until the block ends, which also ends all processes that still run there.

    Args:
        hosts: how many.
        round_trip_s: added to each round trip between any two members, half of it in each direction.
        loss: probability that a packet is lost on its way. What the system sends at once of a TCP stream, up to 64 KB,
            is one packet here.
        gbit_s: gigabits a second that each member can send, and can receive, beyond half a megabyte at a time; None for
            no limit.
        adjustable: whether `Network.set` may be called. If not, and without delay and loss, the kernel carries the
            packets at its full speed, also where it has no netem.

    Raises:
        ValueError: a number is out of range.
        RuntimeError: this machine does not allow it; says what is missing.
    """
    if not 1 <= hosts <= _MOST_HOSTS:
        raise ValueError(f"hosts must be 1 to {_MOST_HOSTS}, got {hosts}")
    if gbit_s is not None and gbit_s <= 0:
        raise ValueError(f"gbit_s must be positive, or None for no limit, got {gbit_s}")
    _check(round_trip_s, loss)
    if absent := _absent():
        raise RuntimeError(f"hosts on this machine: {absent}")
    backend = "veth"
    if adjustable or round_trip_s or loss:
        backend = "netem" if has_netem() else "user-space"
    with subnet(hosts) as names, contextlib.ExitStack() as stack:
        net = Network([_host(names, member) for member in names.members], backend, _links(backend, names, gbit_s))
        stack.callback(net.close)
        for member in names.members:
            names.attach(member)
            if gbit_s and backend != "netem":  # which limits what members send by itself
                names.limit(member, gbit_s)
        if backend != "veth":
            net.set(round_trip_s, loss)
        yield net


@functools.cache
def missing() -> str | None:
    """Why there can be no hosts on this machine; None if there can."""
    if absent := _absent():
        return absent
    try:
        with network(1):
            return None
    except RuntimeError as error:
        return f"the system does not allow it: {error}"


def _absent() -> str | None:
    programs = [program for program in ("ip", "tc") if shutil.which(program) is None]
    if programs:
        return f"{' and '.join(programs)} missing: `apt-get install iproute2`"
    return None if os.geteuid() == 0 else "run as root"


def _check(round_trip_s: float, loss: float) -> None:
    if round_trip_s < 0:
        raise ValueError(f"round_trip_s must not be negative, got {round_trip_s}")
    if not 0 <= loss <= 1:
        raise ValueError(f"loss must be a probability, 0 to 1, got {loss}")


def _links(backend: str, names: Subnet, gbit_s: float | None) -> Links:
    if backend == "user-space":
        return SlowNetwork([names.device(member) for member in names.members], gbit_s)
    return Bridge(names, gbit_s)


def _host(names: Subnet, member: int) -> Host:
    namespace = names.namespace(member)
    return Host(names.address(member), ("ip", "netns", "exec", namespace) if namespace else ())


def _end(timer: threading.Timer) -> None:
    timer.cancel()
    if timer.ident:
        timer.join()
