"""Tables that learn in this process: a shard without doors, and the reference for tables in shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from memory_service.learning.learner import Learner, LearningRun
from memory_service.learning.optimizers import OptimizerConfig
from memory_service.learning.pushes import Push
from memory_service.learning.state import learning_specs
from memory_service.memory import Rows, require_table
from memory_service.placement.placement import Placement, ShardAddress
from memory_service.shard.shard import Shard
from memory_service.snapshots.snapshot import Snapshot, newest_version
from memory_service.snapshots.writer import NewGeneration, TableEntry
from memory_service.tables.distinct import DistinctRows
from memory_service.tables.spec import TableSpec

_EPOCH = 1
_RANK = 0
_Result = TypeVar("_Result")


class LocalLearningMemory:
    """The tables of a snapshot, for the only rank of a run; futures are done on return. See LearningMemory."""

    def __init__(self, snapshot_uri: str | Path, optimizer: OptimizerConfig, step: int = 0) -> None:
        """Load a snapshot that holds optimizer state.

        Args:
            snapshot_uri: the snapshot.
            optimizer: the optimizer of the rows.
            step: steps that the tables have taken.

        Raises:
            SnapshotError: the snapshot cannot be used.
            InvalidRequest: it holds no optimizer state, or that of another optimizer.
        """
        snapshot = Snapshot.open(snapshot_uri)
        self._shard = Shard("local")
        placement = Placement.build(_EPOCH, [ShardAddress(self._shard.name, "")], snapshot.specs.values())
        self._shard.prepare(placement, snapshot_uri=snapshot.uri)
        self._shard.activate(placement)
        self._learner = Learner(self._shard)
        self._start = LearningRun(1, 1, step, newest_version(snapshot_uri) + 1, optimizer)
        self._learner.begin(self._start)
        self.specs: Mapping[str, TableSpec] = learning_specs(snapshot.specs)

    def lookup(self, table: str, rows: np.ndarray, step: int) -> Future[Rows]:
        """See LearningMemory.lookup."""
        spec = require_table(self.specs, table)
        asked = DistinctRows(spec, rows)
        version = self._start.version + step - self._start.step
        return _done(
            lambda: Rows(
                self._shard.lookup(table, asked.ids, _EPOCH, spec.fingerprint, version)[0].copy(), asked.inverse()
            )
        )

    def push(
        self, step: int, table: str, rows: NDArray[np.int64], gradients: NDArray[np.float32], rate: float
    ) -> Future[None]:
        """See LearningMemory.push."""
        push = Push(self._start.incarnation, _RANK, step, table, 0, 1, rate, rows, gradients)
        return _done(lambda: self._learner.push(push))

    def squared_norm(self, step: int) -> Future[float]:
        """See LearningMemory.squared_norm."""
        return _done(lambda: self._learner.squared_norm(self._start.incarnation, step, 0.0))

    def commit(self, step: int, scale: float) -> Future[None]:
        """See LearningMemory.commit."""
        return _done(lambda: self._commit(step, scale))

    def snapshot(self, uri: str | Path) -> Snapshot:
        """Write the tables and their state as a new generation of a snapshot.

        Raises:
            SnapshotError: the directory holds the snapshot of another memory, or cannot be written.
        """
        specs = [table.spec for table in self._shard.tables.values()]
        with NewGeneration(uri, specs) as new:
            return new.seal([self._write(new, spec) for spec in specs])

    def close(self) -> None:
        """See LearningMemory.close."""

    def _commit(self, step: int, scale: float) -> None:
        self._learner.commit(self._start.incarnation, step, scale)

    def _write(self, new: NewGeneration, spec: TableSpec) -> TableEntry:
        blocks = list(range(spec.blocks))
        version, entries = self._shard.write_snapshot(new.store.uri, spec.name, new.prefix, blocks, new.base(spec))
        return TableEntry(spec, version, tuple(entries[block] for block in blocks))


def _done(call: Callable[[], _Result]) -> Future[_Result]:
    future: Future[_Result] = Future()
    try:
        future.set_result(call())
    except Exception as error:
        future.set_exception(error)
    return future
