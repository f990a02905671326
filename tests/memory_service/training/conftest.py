"""Memories that learn, in this process and in shards on free ports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from memory_service import Placement, RowFormat, ShardAddress, TableSpec
from memory_service.learning.optimizers import OptimizerConfig
from memory_service.learning.state import write_learning_snapshot
from memory_service.server.server import ShardServer
from memory_service.shard.shard import Shard
from memory_service.snapshots.snapshot import Snapshot
from memory_service.training.control import Attempt, begin_attempt
from memory_service.training.remote import RemoteLearningMemory
from tests.memory_service.conftest import spec_of

DIM = 6
SPECS = (
    spec_of("engram.1", dim=DIM, row_format=RowFormat.FP32, column_rows=(101, 103, 107, 109), block_rows=16),
    spec_of("engram.3", layer=3, dim=DIM, row_format=RowFormat.FP32, column_rows=(31, 37, 41, 43), block_rows=16),
)


def start_values(spec: TableSpec) -> np.ndarray:
    return np.random.default_rng(spec.layer).standard_normal((spec.rows, spec.dim)).astype(np.float32)


def blocks_of(values: np.ndarray, spec: TableSpec) -> list[np.ndarray]:
    return [values[first : first + spec.block_rows] for first in range(0, spec.rows, spec.block_rows)]


class Shards:
    """Started shards of a snapshot that can learn."""

    def __init__(self, snapshot: Snapshot, count: int, stack: ExitStack) -> None:
        self.snapshot = snapshot
        self.servers = [ShardServer(Shard(f"shard-{index}")).start() for index in range(count)]
        for server in self.servers:
            stack.callback(server.stop, 0.5)
        self._stack = stack
        addresses = [ShardAddress(server.shard.name, server.address) for server in self.servers]
        self.placement = Placement.build(1, addresses, snapshot.specs.values())
        for server in self.servers:
            server.shard.prepare(self.placement, snapshot_uri=snapshot.uri)
        for server in self.servers:
            server.shard.activate(self.placement)

    @property
    def address(self) -> str:
        return self.servers[0].address

    def begin(self, ranks: int, optimizer: OptimizerConfig, step: int = 0, snapshot_uri: str | None = None) -> Attempt:
        return begin_attempt(self.address, ranks, step, optimizer, snapshot_uri)

    def ranks(self, attempt: Attempt) -> list[RemoteLearningMemory]:
        memories = [RemoteLearningMemory.connect(self.address, attempt, rank) for rank in range(attempt.ranks)]
        for memory in memories:
            self._stack.callback(memory.close)
        return memories


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def learning_snapshot(tmp_path: Path) -> Callable[..., Snapshot]:
    """Writes a snapshot of SPECS, or of other tables, that can learn."""

    def write(optimizer: OptimizerConfig, specs: Sequence[TableSpec] = SPECS, name: str = "memory") -> Snapshot:
        tables = {spec: blocks_of(start_values(spec), spec) for spec in specs}
        return write_learning_snapshot(tmp_path / name, tables, optimizer)

    return write


@pytest.fixture
def shards(learning_snapshot: Callable[..., Snapshot], stack: ExitStack) -> Callable[..., Shards]:
    def start(count: int, optimizer: OptimizerConfig, specs: Sequence[TableSpec] = SPECS) -> Shards:
        return Shards(learning_snapshot(optimizer, specs), count, stack)

    return start
