"""Small tables with seeded contents, and shards that serve them on free ports of this machine."""

from __future__ import annotations

import importlib
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness.servers import free_ports
from memory_service import (
    ClientConfig,
    MemoryClient,
    Placement,
    RowFormat,
    ShardAddress,
    TableSpec,
    pack_rows,
    write_snapshot,
)
from memory_service.server.server import ShardServer
from memory_service.shard.shard import Shard, ShardConfig
from tests.conformance.implementations import IMPLEMENTATIONS, choose, environment_of

DIM = 64
ROOT = Path(__file__).parents[2]


def spec_of(name: str = "engram.1", **changes: object) -> TableSpec:
    fields = {
        "name": name,
        "layer": 1,
        "column_rows": (401, 409, 419, 421),
        "max_ngram": 3,
        "heads": 2,
        "multipliers": (7, 11, 13),
        "pad_id": 2,
        "token_map_sha256": "ab" * 32,
        "dim": DIM,
        "row_format": RowFormat.BF16,
        "block_rows": 64,
    }
    return TableSpec(**{**fields, **changes})  # type: ignore[arg-type]


def packed_of(spec: TableSpec, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(spec.rows, spec.dim)).astype(np.float32)
    return pack_rows(values, spec.row_format)


class Cluster:
    """Started shards of one snapshot, and clients of them; everything ends with the test."""

    def __init__(self, snapshot: Path, specs: list[TableSpec], stack: ExitStack) -> None:
        self.snapshot = snapshot
        self.specs = specs
        self.servers: list[ShardServer] = []
        self._stack = stack

    def start(self, shards: int, replicas: int = 1, config: ShardConfig | None = None) -> Cluster:
        for index in range(shards):
            self.add(ShardServer(Shard(f"shard-{index}", config)).start())
        self.activate(1, replicas)
        return self

    def add(self, server: ShardServer) -> ShardServer:
        self._stack.callback(server.stop, 0.5)
        self.servers.append(server)
        return server

    def activate(self, epoch: int, replicas: int = 1) -> Placement:
        addresses = [ShardAddress(server.shard.name, server.address) for server in self.servers]
        placement = Placement.build(epoch, addresses, self.specs, replicas)
        for server in self.servers:
            server.shard.prepare(placement, snapshot_uri=self.snapshot)
        for server in self.servers:
            server.shard.activate(placement)
        for server in self.servers:
            server.shard.retire(epoch)
        return placement

    def connect(self, shard: int = 0, **config: float) -> MemoryClient:
        client = MemoryClient.connect(self.servers[shard].address, config=ClientConfig(**config))  # type: ignore[arg-type]
        self._stack.callback(client.close)
        return client


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The implementation of the wire of shards and clients that the test starts."""
    choose(request.param, monkeypatch)
    return request.param


@pytest.fixture(autouse=True)
def implementation_of_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ENGRAM_TEST_SHARDS, shards are of that implementation whatever clients are; `mixed` takes them in turn."""
    if wanted := os.environ.get("ENGRAM_TEST_SHARDS"):
        choices = itertools.cycle(IMPLEMENTATIONS if wanted == "mixed" else (wanted,))
        modules = {"python": None, "native": importlib.import_module("memory_service.native._rows")}
        monkeypatch.setattr("memory_service.shard.shard.extension", lambda: modules[next(choices)])
        monkeypatch.setattr(Processes, "implementation", lambda _: next(choices))


@pytest.fixture
def make_spec() -> Callable[..., TableSpec]:
    return spec_of


@pytest.fixture
def make_packed() -> Callable[..., np.ndarray]:
    return packed_of


@pytest.fixture
def spec() -> TableSpec:
    return spec_of()


@pytest.fixture
def packed(spec: TableSpec) -> np.ndarray:
    return packed_of(spec)


@pytest.fixture
def snapshot(tmp_path: Path, spec: TableSpec, packed: np.ndarray) -> Path:
    write_snapshot(tmp_path / "memory", {spec: packed})
    return tmp_path / "memory"


@pytest.fixture
def in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards that this test starts answer by the implementation in Python, parts of which the test replaces."""
    monkeypatch.setenv("ENGRAM_MEMORY_NATIVE", "0")
    monkeypatch.setattr("memory_service.shard.shard.extension", lambda: None)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="session")
def ipv6() -> str:
    """The loopback host of IPv6; tests of it are skipped where this machine has none."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return "::1"
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 loopback: {error}")


@pytest.fixture
def cluster(snapshot: Path, spec: TableSpec, stack: ExitStack) -> Cluster:
    return Cluster(snapshot, [spec], stack)


@pytest.fixture
def ids(spec: TableSpec) -> np.ndarray:
    return np.random.default_rng(1).integers(0, spec.rows, (50, 4))


class Processes:
    """Shards as processes of their own, started as a user would."""

    def __init__(self, snapshot: Path, stack: ExitStack) -> None:
        self._snapshot = snapshot
        self._stack = stack
        self.running: list[subprocess.Popen[str]] = []
        self.addresses: list[str] = []

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.running]

    def __call__(self, shards: int, replicas: int = 1, share_memory: bool = False) -> Processes:
        peers = [f"127.0.0.1:{port}" for port in free_ports(shards)]
        for index, peer in enumerate(peers):
            port = peer.rpartition(":")[2]
            place = ["--port", port, "--shard-index", str(index), "--peers", ",".join(peers)]
            self.start(*place, "--replicas", str(replicas), *(["--share-memory"] if share_memory else []))
        self.addresses = [self.ready(process) for process in self.running]
        return self

    def start(self, *options: str) -> subprocess.Popen[str]:
        source = () if "--join" in options else ("--snapshot", str(self._snapshot))
        return self.run([sys.executable, "-m", "memory_service.server.process", *source, *options])

    def implementation(self) -> str | None:
        """That of the next process; None for the one by default."""
        return None

    def run(self, command: list[str]) -> subprocess.Popen[str]:
        chosen = self.implementation()
        environment = os.environ if chosen is None else {**os.environ, **environment_of(chosen)}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        )
        self.running.append(process)
        self._stack.callback(_end, process)
        return process

    @staticmethod
    def ready(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert " serving on " in line or " waiting on " in line, process.communicate()
        return line.split()[-1]

    def connect(self, **config: float) -> MemoryClient:
        client = MemoryClient.connect(self.addresses[0], 30, ClientConfig(**config))  # type: ignore[arg-type]
        self._stack.callback(client.close)
        return client


@pytest.fixture
def processes(snapshot: Path, stack: ExitStack) -> Processes:
    return Processes(snapshot, stack)


@pytest.fixture
def free_port() -> int:
    return free_ports(1)[0]


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
