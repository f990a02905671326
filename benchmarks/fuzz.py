"""Hostile requests to both doors of a shard process: it stays up, its memory stays bounded, its rows stay right.

`python -m benchmarks.fuzz --requests 20000 --seed 0`: the same seed sends the same requests.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import psutil

from benchmarks.faults.hostile import Hostility, Request, describe
from memory_service import MemoryClient, RowFormat, TableSpec, write_snapshot
from memory_service.control.client import ControlClient
from memory_service.protocol.addresses import parse_address
from memory_service.tables.random_tables import random_blocks

_BATCH = 250  # hostile requests between two checks
_TIMEOUT_S = 5.0
_MAX_GROWTH = 256 << 20  # bytes by which the shard's memory may grow
_MAX_THREADS = 64  # threads that the shard may gain: each stream has one, and all streams have ended
_ROOT = Path(__file__).resolve().parent.parent


class SiegeError(Exception):
    """The shard failed a check; the message lists the requests sent since the check before."""


@dataclass
class Outcome:
    """Results of a run."""

    codes: Counter[str] = field(default_factory=Counter)
    """Number of requests by the gRPC code that they ended in; "bytes" for those that were no calls."""
    checks: int = 0
    peak_growth: int = 0
    """Largest growth of the shard's memory, in bytes."""

    @property
    def requests(self) -> int:
        """Number of requests sent."""
        return self.codes.total()


def fuzz(requests: int, seed: int) -> Outcome:
    """Send hostile requests to a shard started for it.

    Raises:
        SiegeError: the shard ended, grew too large or returned wrong rows.
    """
    spec = TableSpec(
        name="engram.1",
        layer=1,
        column_rows=(4001, 4003, 4007, 4013),
        max_ngram=3,
        heads=2,
        multipliers=(7, 11, 13),
        pad_id=2,
        token_map_sha256="ab" * 32,
        dim=64,
        row_format=RowFormat.BF16,
        block_rows=256,
    )
    packed = np.concatenate(list(random_blocks(spec, seed)))
    with tempfile.TemporaryDirectory() as folder:
        write_snapshot(Path(folder) / "memory", {spec: packed})
        with shard_process(Path(folder)) as (process, address):
            return _Siege(process, address, spec, packed).run(requests, seed)


@contextlib.contextmanager
def shard_process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A shard that serves the snapshot `memory` of a directory, and works in that directory."""
    command = [sys.executable, "-m", "memory_service.server.process", "--snapshot", "memory"]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder, env=environment)
        try:
            assert process.stdout is not None, "its output is a pipe"
            yield process, process.stdout.readline().split()[-1]
        finally:
            process.kill()
            process.communicate()


class _Siege:
    """One shard and what is sent to it."""

    def __init__(self, process: subprocess.Popen[str], address: str, spec: TableSpec, packed: np.ndarray) -> None:
        self._process = process
        self._address = address
        self._spec = spec
        self._packed = packed
        self._seen = psutil.Process(process.pid)
        self._outcome = Outcome()
        with ControlClient(address) as control:
            info = control.describe()
        assert info.placement is not None, "a shard that serves has a placement"
        self._placement = info.placement
        self._doors = {"control": address, "rows": f"127.0.0.1:{info.rows_port}"}

    def run(self, requests: int, seed: int) -> Outcome:
        hostility = Hostility(seed, self._spec, self._placement, "memory", "scratch")
        self._check([])
        self._rss, self._threads = self._seen.memory_info().rss, self._seen.num_threads()
        while (left := requests - self._outcome.requests) > 0:
            batch = [hostility.next() for _ in range(min(_BATCH, left))]
            with contextlib.ExitStack() as stack:
                channels = {
                    door: stack.enter_context(grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]))
                    for door, address in self._doors.items()
                }
                for request in batch:
                    self._outcome.codes[self._send(request, channels[request.door])] += 1
            self._check(batch)
            self._check_size(batch)
        return self._outcome

    def _send(self, request: Request, channel: grpc.Channel) -> str:
        if not request.method:
            return _send_bytes(self._doors[request.door], request.messages[0])
        call = channel.stream_stream(request.method)(iter(request.messages), timeout=_TIMEOUT_S)
        try:
            for _ in call:
                if request.hang_up:
                    break
        except grpc.RpcError:
            pass
        if request.hang_up:
            call.cancel()
        return call.code().name

    def _check(self, batch: list[Request]) -> None:
        """Check that the shard runs, serves under its placement, and returns every row right."""
        try:
            with contextlib.closing(MemoryClient.connect(self._address, 10)) as client:
                rows = client.lookup(self._spec.name, np.arange(self._spec.rows), 20).result()
        except Exception as error:
            raise self._broken(f"a proper lookup failed: {error!r}", batch) from error
        if self._process.poll() is not None:
            raise self._broken(f"the shard ended with code {self._process.returncode}", batch)
        if not np.array_equal(rows.unique[rows.inverse], self._packed):
            raise self._broken("wrong rows", batch)
        self._outcome.checks += 1

    def _check_size(self, batch: list[Request]) -> None:
        growth = self._seen.memory_info().rss - self._rss
        self._outcome.peak_growth = max(self._outcome.peak_growth, growth)
        if growth > _MAX_GROWTH:
            raise self._broken(f"memory grew by {growth >> 20} MiB", batch)
        if (threads := self._seen.num_threads()) > self._threads + _MAX_THREADS:
            raise self._broken(f"{threads} threads, {self._threads} at first", batch)

    def _broken(self, what: str, batch: list[Request]) -> SiegeError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)  # a shard that falls takes a moment to be gone
        code = self._process.poll()
        sent = "\n  ".join(describe(request) for request in batch)
        return SiegeError(
            f"{what} (exit code {code}) after {self._outcome.requests} requests, the last of them:\n  {sent}"
        )


def _send_bytes(address: str, content: bytes) -> str:
    """Send bytes and close the connection at once."""
    door = parse_address(address)
    with contextlib.suppress(OSError), socket.create_connection((door.host, door.port), _TIMEOUT_S) as connection:
        connection.sendall(content)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return "bytes"


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", metavar="N", type=int, default=20_000, help="how many (default %(default)s)")
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="of the requests (default %(default)s)")
    options = parser.parse_args()
    started = time.monotonic()
    outcome = fuzz(options.requests, options.seed)
    print(f"{outcome.requests:,} hostile requests in {time.monotonic() - started:.0f} s: the shard is up")
    print(f"every row right in each of {outcome.checks} checks; memory grew by {outcome.peak_growth / 2**20:.1f} MiB")
    for code, count in outcome.codes.most_common():
        print(f"  {code:20} {count:7,}")


if __name__ == "__main__":
    main()
