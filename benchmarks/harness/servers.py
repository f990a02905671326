"""Servers that a benchmark measures, each a process of its own on this machine."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.hosts import Host


@dataclass(frozen=True)
class Server:
    """A running server."""

    port: int
    pid: int
    host: str = "127.0.0.1"

    @property
    def address(self) -> str:
        """host:port."""
        return f"{self.host}:{self.port}"


HERE = Host("127.0.0.1", ())


@contextlib.contextmanager
def module_server(module: str, *arguments: str, host: Host = HERE) -> Iterator[Server]:
    """Run `python -m module` on a host until the block ends. The first line of its output must end in its port."""
    command = [*host.command, sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None, "its output is a pipe"
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"{module} did not start, see its messages above")
            yield Server(int(line.split()[-1].rpartition(":")[2]), process.pid, host.address)
        finally:
            process.terminate()


@contextlib.contextmanager
def memory_shards(
    snapshot: Path, shards: int = 1, *options: str, hosts: Sequence[Host] = (HERE,)
) -> Iterator[list[Server]]:
    """Serve a snapshot from `shards` plain processes, as `engram memory serve` does, on some hosts by turns."""
    places = [(hosts[index % len(hosts)], port) for index, port in enumerate(free_ports(shards))]
    peers = ",".join(f"{host.address}:{port}" for host, port in places)
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(_shard(snapshot, port, index, peers, *options, host=host))
            for index, (host, port) in enumerate(places)
        ]


def _shard(
    snapshot: Path, port: int, index: int, peers: str, *options: str, host: Host
) -> contextlib.AbstractContextManager[Server]:
    place = ["--host", host.address, "--port", str(port), "--shard-index", str(index), "--peers", peers]
    return module_server("memory_service.server.process", "--snapshot", str(snapshot), *place, *options, host=host)


def free_ports(count: int) -> Sequence[int]:
    """Return ports for servers that will listen on loopback, for where every server must know the ports of all.

    They lie outside of the range from which Linux gives ports to connections and to servers that listen on port 0
    (32768 to 60999), so that nothing else takes them before the servers listen.
    """
    found: set[int] = set()
    chance = random.SystemRandom()  # others draw at the same time, and may have seeded `random` alike
    while len(found) < count:
        port = chance.randrange(20_000, 32_768)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.add(port)
    return sorted(found)
