"""A second host on this machine: a network namespace with an address of its own, behind a link of a given speed.

with neighbour(gbit_s=25) as host:
    subprocess.run([*host.command, "python", "-m", ...])  # runs there, reachable at host.address

Needs root and the commands `ip` and `tc` of iproute2.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Host:
    """Where commands run as if on another machine."""

    address: str
    """Its address."""
    command: Sequence[str]
    """Put before a command, runs it there."""


@contextlib.contextmanager
def neighbour(gbit_s: float) -> Iterator[Host]:
    """Make another host until the block ends, reachable at `gbit_s` gigabits a second in each direction.

    Raises:
        RuntimeError: this machine does not allow it; says what is missing.
    """
    if reason := missing():
        raise RuntimeError(f"a second host on this machine: {reason}")
    name = f"engram{os.getpid()}"
    here, there = f"{name}a"[-15:], f"{name}b"[-15:]
    subnet = f"198.18.{os.getpid() % 256}"  # of a block set aside for benchmarks, RFC 2544
    queue = ("tbf", "rate", f"{gbit_s:g}gbit", "burst", "512kb", "latency", "100ms")
    inside = ("ip", "netns", "exec", name)
    with contextlib.ExitStack() as stack:
        _run("ip", "netns", "add", name)
        stack.callback(_run, "ip", "netns", "delete", name)  # and the pair of interfaces with it
        _run("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        _run("ip", "address", "add", f"{subnet}.1/24", "dev", here)
        _run(*inside, "ip", "address", "add", f"{subnet}.2/24", "dev", there)
        _run("ip", "link", "set", here, "up")
        for interface in (there, "lo"):
            _run(*inside, "ip", "link", "set", interface, "up")
        _run("tc", "qdisc", "add", "dev", here, "root", *queue)
        _run(*inside, "tc", "qdisc", "add", "dev", there, "root", *queue)
        yield Host(f"{subnet}.2", inside)


def missing() -> str | None:
    """Why there can be no second host on this machine; None if there can."""
    absent = [program for program in ("ip", "tc") if shutil.which(program) is None]
    if absent:
        return f"{' and '.join(absent)}: `apt-get install iproute2`"
    return None if os.geteuid() == 0 else "run as root"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
