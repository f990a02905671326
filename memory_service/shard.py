"""A shard without a network: tables, a placement, and lookups that check what they were asked."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memory_service.errors import FingerprintMismatch, InvalidRequest, RequestTooLarge, ShardUnavailable, WrongEpoch
from memory_service.manifest import BlockEntry
from memory_service.memory import require_table
from memory_service.placement import Placement
from memory_service.snapshot import Snapshot, refuse_existing, write_blocks
from memory_service.store import Store
from memory_service.table import ShardTable


@dataclass(frozen=True)
class ShardConfig:
    """Limits of a shard."""

    max_rows: int = 1 << 20
    """Rows in one lookup; a larger one is refused before anything is allocated for it."""


@dataclass(frozen=True)
class ShardStats:
    """Counters of a shard since it was made."""

    requests: int = 0
    """Lookups answered with rows."""
    refused: int = 0
    """Lookups answered with an error."""
    expired: int = 0
    """Lookups dropped because their time was up before their turn came."""
    rows: int = 0
    bytes: int = 0
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    """Time by stage: "locate", "gather"."""


@dataclass(frozen=True)
class _Serving:
    """What one lookup sees: swapped as a whole, so that a lookup never mixes two placements."""

    placement: Placement
    tables: Mapping[str, ShardTable]


class Shard:
    """Holds blocks and answers lookups under one placement at a time. Safe to use from several threads."""

    def __init__(self, name: str, config: ShardConfig | None = None) -> None:
        self.name = name
        self.config = config or ShardConfig()
        self._lock = threading.Lock()
        self._loaded: Mapping[str, ShardTable] = {}
        self._serving: _Serving | None = None
        self._stats = ShardStats()
        self._callbacks: list[Callable[[], None]] = []

    @property
    def placement(self) -> Placement | None:
        """The placement served under; None before the first activation."""
        serving = self._serving
        return serving.placement if serving else None

    @property
    def tables(self) -> Mapping[str, ShardTable]:
        """The tables served, or those loaded so far where none is served yet."""
        serving = self._serving
        return serving.tables if serving else self._loaded

    def load(self, snapshot_uri: str | Path, placement: Placement) -> list[ShardTable]:
        """Read the blocks that a placement assigns to this shard. Lookups go on as before until `activate`.

        SnapshotError, or UnknownTable for a table of the placement that the snapshot does not have.
        """
        snapshot = Snapshot.open(snapshot_uri)
        tables = {name: self._load_table(snapshot, name, placement) for name in placement.tables}
        with self._lock:
            self._loaded = tables
        return list(tables.values())

    def activate(self, placement: Placement) -> None:
        """Serve under a placement from now on; WrongEpoch if it is older, or if its blocks are not loaded."""
        with self._lock:
            current = self._serving
            if current and placement.epoch < current.placement.epoch:
                raise WrongEpoch(
                    f"{self.name} serves epoch {current.placement.epoch} and does not go back to {placement.epoch}: "
                    "build the new placement with a higher epoch"
                )
            tables = self._loaded or (current.tables if current else {})
            self._check_holds(tables, placement)
            self._serving = _Serving(placement, tables)
            self._loaded = {}
        for callback in self._callbacks:
            callback()

    def lookup(
        self, table: str, rows: NDArray[np.int64], epoch: int, fingerprint: str
    ) -> tuple[NDArray[np.uint8], int, int]:
        """Packed rows [n, row_bytes] of row ids [n], the epoch and the table's version."""
        try:
            held = self._checked_table(table, epoch, fingerprint)
            return self._gather(held, rows), epoch, held.version
        except Exception:
            self._count(refused=1)
            raise

    def when_serving(self, callback: Callable[[], None]) -> None:
        """Call back after every activation, and at once if there was one already."""
        self._callbacks.append(callback)
        if self._serving:
            callback()

    def expire(self) -> None:
        """Count a lookup that was dropped because its time was up."""
        self._count(expired=1)

    def write_snapshot(self, uri: str | Path, table: str) -> tuple[int, dict[int, BlockEntry]]:
        """Write the blocks of a table of which this shard is replica 0; the table's version and the entries."""
        serving = self._serving
        if serving is None:
            raise ShardUnavailable(f"{self.name} has no active placement yet: nothing to write", table, self.name)
        held = require_table(serving.tables, table)
        store = Store(uri)
        refuse_existing(store)
        mine = serving.placement.blocks_of(table, self.name, replica=0).tolist()
        blocks = ((block, held.block(block)) for block in mine)
        return held.version, write_blocks(store, held.spec, blocks, prefix=f"{self.name}-")

    def stats(self) -> ShardStats:
        """Counters since construction."""
        with self._lock:
            return self._stats

    def _checked_table(self, table: str, epoch: int, fingerprint: str) -> ShardTable:
        serving = self._serving
        if serving is None:
            raise ShardUnavailable(f"{self.name} has no active placement yet: load and activate one", table, self.name)
        held = require_table(serving.tables, table)
        if held.spec.fingerprint != fingerprint:
            raise FingerprintMismatch(
                f"table {table!r} on {self.name} has fingerprint {held.spec.fingerprint}, asked for {fingerprint}: "
                "use the snapshot and the tokenizer that the model was trained with"
            )
        if epoch != serving.placement.epoch:
            raise WrongEpoch(f"{self.name} serves epoch {serving.placement.epoch}, asked under epoch {epoch}")
        return held

    def _gather(self, held: ShardTable, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        if rows.dtype != np.int64 or rows.ndim != 1:
            raise InvalidRequest(f"row ids must be int64 [n], got {rows.dtype} {list(rows.shape)}")
        if len(rows) > self.config.max_rows:
            raise RequestTooLarge(
                f"table {held.spec.name!r}: {len(rows)} rows in one lookup, {self.name} takes {self.config.max_rows}: "
                "split it"
            )
        start = time.perf_counter()
        local = held.locate(rows)
        located = time.perf_counter()
        out = np.empty((len(rows), held.spec.row_bytes), np.uint8)
        held.gather(local, out)
        end = time.perf_counter()
        self._count(1, rows=len(rows), size=out.nbytes, locate=located - start, gather=end - located)
        return out

    def _load_table(self, snapshot: Snapshot, name: str, placement: Placement) -> ShardTable:
        entry = snapshot.table(name)
        assigned = placement.assigned(name)
        if assigned.shape[1] != entry.spec.blocks:
            raise InvalidRequest(
                f"the placement has {assigned.shape[1]} blocks of table {name!r}, the snapshot {entry.spec.blocks}: "
                "build it from the snapshot's specs"
            )
        table = ShardTable(entry.spec, placement.blocks_of(name, self.name), entry.version)
        for block, rows in snapshot.read_blocks(name, table.blocks.tolist()):
            table.block(block)[:] = rows
        return table

    def _check_holds(self, tables: Mapping[str, ShardTable], placement: Placement) -> None:
        for name in placement.tables:
            mine = placement.blocks_of(name, self.name)
            if name not in tables or not tables[name].holds(mine):
                raise WrongEpoch(
                    f"{self.name} has not loaded the blocks of table {name!r} that epoch {placement.epoch} gives it: "
                    "load the snapshot with this placement first"
                )

    def _count(
        self,
        requests: int = 0,
        refused: int = 0,
        expired: int = 0,
        rows: int = 0,
        size: int = 0,
        **stages: float,
    ) -> None:
        with self._lock:
            old = self._stats
            seconds = {name: old.stage_seconds.get(name, 0.0) + spent for name, spent in stages.items()}
            self._stats = replace(
                old,
                requests=old.requests + requests,
                refused=old.refused + refused,
                expired=old.expired + expired,
                rows=old.rows + rows,
                bytes=old.bytes + size,
                stage_seconds={**old.stage_seconds, **seconds},
            )
