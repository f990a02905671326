"""Network namespaces that carry the number of the process that made them, and the kernel's own links between them.

Members of a network count from 0, which stands for everything outside of its namespaces.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SUBNETS = 512  # of 256 addresses, in the block set aside for benchmarks, RFC 2544
_SWITCH = "switch"
_LATEST_END_S = 5.0  # until when killed processes must have left a namespace


@dataclass(frozen=True)
class Subnet:
    """The names and addresses of one network."""

    number: int
    pid: int
    hosts: int = 0

    @property
    def members(self) -> range:
        """All members."""
        return range(1 + self.hosts)

    def namespace(self, member: int | str) -> str | None:
        """Where a member lives; None for member 0."""
        return f"engram-{self.pid}-{self.number}-{member}" if member else None

    def device(self, member: int) -> str:
        """Name of a member's network interface."""
        return f"engram{self.number}h{member}"

    def address(self, member: int) -> str:
        """Address of a member."""
        return f"198.{18 + self.number // 256}.{self.number % 256}.{member + 1}"

    def attach(self, member: int) -> None:
        """Give a member its interface, which exists so far outside of the namespaces, and its address."""
        namespace, device = self.namespace(member), self.device(member)
        if namespace:
            run("ip", None, f"link set {device} netns {namespace}")
            run("ip", namespace, "link set lo up")
        run("ip", namespace, f"address add {self.address(member)}/24 dev {device}")
        run("ip", namespace, f"link set {device} up")

    def limit(self, member: int, gbit_s: float) -> None:
        """Let a member send this much."""
        _limit(self.namespace(member), self.device(member), gbit_s)

    def remove(self) -> None:
        """End all processes in the namespaces, and remove those and the interfaces."""
        for name, subnet in _existing():
            if (subnet.number, subnet.pid) == (self.number, self.pid):
                _end_processes(name)
                _try("ip", None, f"netns delete {name}")
        _try("ip", None, f"link delete {self.device(0)}")


@contextlib.contextmanager
def subnet(hosts: int) -> Iterator[Subnet]:
    """A subnet of this process, with a namespace for each of the members 1 to `hosts`, until the block ends.

    What earlier processes left behind when they were killed is removed first.

    Raises:
        RuntimeError: the system does not allow it.
    """
    with contextlib.ExitStack() as stack:
        with _one_at_a_time():
            for left in {subnet for _, subnet in _existing() if not Path(f"/proc/{subnet.pid}").exists()}:
                left.remove()
            taken = {subnet.number for _, subnet in _existing()}
            found = Subnet(min(set(range(_SUBNETS)) - taken), os.getpid(), hosts)
            stack.callback(found.remove)
            for member in found.members[1:]:
                run("ip", None, f"netns add {found.namespace(member)}")
        yield found


@functools.cache
def has_netem() -> bool:
    """Whether this kernel can delay and lose packets."""
    with subnet(1) as trial:
        return _try("tc", trial.namespace(1), "qdisc add dev lo root netem delay 1ms")


class Bridge:
    """Links of the kernel: from each member a pair of interfaces to a bridge in a namespace of its own.

    Args:
        subnet: whose interfaces to make.
        gbit_s: what each member can receive, and after `set` also send; None for no limit.
    """

    def __init__(self, subnet: Subnet, gbit_s: float | None) -> None:
        self._subnet = subnet
        self._gbit_s = gbit_s
        self._switch = subnet.namespace(_SWITCH)
        run("ip", None, f"netns add {self._switch}")
        run("ip", self._switch, "link add bridge type bridge")
        run("ip", self._switch, "link set bridge up")
        for member in subnet.members:
            self._link(member)

    def _link(self, member: int) -> None:
        device, port = self._subnet.device(member), f"port{member}"
        run("ip", None, f"link add {device} type veth peer name {port} netns {self._switch}")
        run("ip", self._switch, f"link set {port} master bridge up")
        if self._gbit_s:
            _limit(self._switch, port, self._gbit_s)

    def set(self, one_way_s: float, loss: float) -> None:
        """Delay packets that are sent from now on, and lose this share of them."""
        netem = f"netem limit 100000 delay {1e6 * one_way_s:.0f}us loss {100 * loss:.6f}%"
        rate = f" rate {self._gbit_s:g}gbit" if self._gbit_s else ""
        for member in self._subnet.members:
            where = f"dev {self._subnet.device(member)}"
            run("tc", self._subnet.namespace(member), f"qdisc replace {where} root {netem}{rate}")

    def cut(self, member: int, off: bool) -> None:
        """Drop all packets from and to a member, or no longer."""
        run("ip", self._switch, f"link set port{member} {'nomaster' if off else 'master bridge'}")

    def close(self) -> None:
        """Nothing to do: the links go with the namespaces."""


def run(program: str, namespace: str | None, arguments: str) -> None:
    """Run `ip` or `tc`, for a namespace.

    Raises:
        RuntimeError: it failed.
    """
    inside = ("-n", namespace) if namespace else ()
    done = subprocess.run([program, *inside, *arguments.split()], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{program} {' '.join(inside)} {arguments}: {done.stderr.strip()}")


def _limit(namespace: str | None, device: str, gbit_s: float) -> None:
    run("tc", namespace, f"qdisc add dev {device} root tbf rate {gbit_s:g}gbit burst 512kb latency 100ms")


def _try(program: str, namespace: str | None, arguments: str) -> bool:
    try:
        run(program, namespace, arguments)
    except RuntimeError:
        return False
    return True


def _existing() -> list[tuple[str, Subnet]]:
    """All namespaces of hosts on this machine."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    found = re.finditer(r"^(engram-(\d+)-(\d+)-\w+)", listed, re.M)
    return [(match[1], Subnet(number=int(match[3]), pid=int(match[2]))) for match in found]


def _end_processes(namespace: str) -> None:
    latest = time.monotonic() + _LATEST_END_S
    while (pids := _processes(namespace)) and time.monotonic() < latest:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _processes(namespace: str) -> list[int]:
    listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True).stdout
    return [int(pid) for pid in listed.split()]


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Keep other processes from choosing the same subnet."""
    with (Path(tempfile.gettempdir()) / "engram-subnets.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
