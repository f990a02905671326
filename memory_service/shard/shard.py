"""A shard: its tables, the placements under which it answers, and lookups that are checked against both."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from memory_service.errors import (
    FingerprintMismatch,
    InvalidRequest,
    OldVersion,
    RequestTooLarge,
    ShardUnavailable,
    WrongEpoch,
)
from memory_service.memory import require_table
from memory_service.metrics.catalogue import SHARD_BLOCKS, SHARD_EPOCH, SHARD_HELD_BYTES, SHARD_VERSION
from memory_service.metrics.metrics import SECONDS_BOUNDS, Sample
from memory_service.native import extension
from memory_service.placement.placement import Placement
from memory_service.protocol.reports import BlockRows, Prepared, ShardStats
from memory_service.shard.block_load import BlockLoad
from memory_service.shard.block_sources import Sources
from memory_service.shard.counters import ShardCounters
from memory_service.shard.scratch import Scratch
from memory_service.shard.table import ShardTable
from memory_service.snapshots.manifest import BlockEntry
from memory_service.snapshots.store import open_store
from memory_service.snapshots.writer import write_blocks
from memory_service.tables.spec import TableSpec


@dataclass(frozen=True)
class ShardConfig:
    """Configuration of a shard."""

    max_rows: int = 1 << 20
    """Most rows in one lookup; a larger lookup is refused before anything is allocated for it."""
    share_memory: bool = False
    """Let other processes of this user on this machine read the tables directly, at the cost of huge pages."""
    node: str = ""
    """Name, for people to read, of the machine that the shard runs on and is lost with."""


@dataclass(frozen=True)
class _Serving:
    """The placements under which lookups are answered. Replaced as a whole."""

    active: Placement | None = None
    """The active placement."""
    placements: Mapping[int, Placement] = field(default_factory=dict)
    """Placements by epoch: the active one, older ones that are not retired yet, and a prepared one."""

    def epoch(self) -> int:
        """The active epoch, or 0 before the first activation."""
        return self.active.epoch if self.active else 0

    def until_active(self) -> dict[int, Placement]:
        """All placements except a prepared one."""
        return {epoch: placement for epoch, placement in self.placements.items() if epoch <= self.epoch()}


class Shard:
    """Holds blocks and answers lookups while blocks are added and dropped. Safe to use from several threads.

    To change the placement, call `prepare` on every shard of the new one, then `activate` on every shard, and finally
    `retire`. Between preparation and retirement, lookups of both the old and the new epoch are answered.
    """

    def __init__(self, name: str, config: ShardConfig | None = None) -> None:
        self.name = name
        self.config = config or ShardConfig()
        self._preparing = threading.Lock()
        self._changing = threading.Lock()  # guards the fields below; held briefly, never while blocks are transferred
        self._tables: Mapping[str, ShardTable] = {}
        self._serving = _Serving()
        self._intended: Placement | None = None  # the latest placement being prepared, until it is activated
        self.counters = ShardCounters()
        self._scratch = Scratch()
        self.block_load = BlockLoad()
        self._callbacks: list[Callable[[], None]] = []
        self.compiled = extension()
        """Module of the native implementation; None to serve by the one in Python."""
        self.native: Any = self.compiled and self.compiled.Shard(
            name=name, max_rows=self.config.max_rows, bounds=list(SECONDS_BOUNDS)
        )
        """What is served, for native readers, and what they count; None without the native extension."""

    @property
    def placement(self) -> Placement | None:
        """The active placement, or None before the first activation."""
        return self._serving.active

    @property
    def epoch(self) -> int:
        """The active epoch, or 0 before the first activation."""
        return self._serving.epoch()

    @property
    def tables(self) -> Mapping[str, ShardTable]:
        """Tables of the placements that this shard knows, by name."""
        return self._tables

    def prepare(
        self, placement: Placement, current: Placement | None = None, snapshot_uri: str | Path | None = None
    ) -> Prepared:
        """Acquire the blocks that a placement assigns to this shard, and answer lookups under it from then on.

        Blocks that are held already are kept. After a failure, the blocks acquired so far are kept for the next
        attempt. A placement that was prepared earlier but never activated is discarded, and its blocks are freed.

        Args:
            placement: the placement to prepare.
            current: placement whose shards missing blocks are copied from.
            snapshot_uri: snapshot from which blocks are read that no shard provides.

        Returns:
            Numbers of the blocks kept, copied and loaded.

        Raises:
            WrongEpoch: the placement is older than the active one, or another one was prepared in the meantime.
            InvalidRequest: the placement has another number of blocks than a table.
            ShardUnavailable: no shard provides a block, and there is no snapshot.
            SnapshotError: the snapshot lacks a block, or the block is damaged.
            UnknownTable: the snapshot has no such table.
            OutOfMemory: there is no room for the blocks.
        """
        self._intend(placement)
        with self._preparing:
            self._forget_others(placement)
            sources = Sources(self.name, current, snapshot_uri)
            try:
                parts = [self._prepare_table(name, placement, sources) for name in placement.tables]
            finally:
                sources.close()
            with self._changing:
                self._check_intended(placement)
                placements = {**self._serving.placements, placement.epoch: placement}
                self._publish(serving=replace(self._serving, placements=placements))
        return sum(parts, Prepared())

    def activate(self, placement: Placement) -> None:
        """Activate a placement. Lookups of older placements are answered until `retire`.

        Raises:
            WrongEpoch: the placement is older than the active one, or this shard does not hold its blocks.
        """
        with self._changing:
            self._check_newer(placement)
            self._check_holds(placement)
            placements = {**self._serving.until_active(), placement.epoch: placement}
            if self._intended is not None and self._intended.epoch <= placement.epoch:
                self._intended = None
            self._publish(serving=_Serving(placement, placements))
        for callback in self._callbacks:
            callback()

    def retire(self, epoch: int) -> None:
        """Stop answering under placements older than `epoch`, and free the blocks that only they assign to this shard.

        Raises:
            WrongEpoch: the active placement is itself older than `epoch`.
        """
        with self._changing:
            serving = self._serving
            if serving.epoch() < epoch:
                raise WrongEpoch(
                    f"{self.name} serves epoch {serving.epoch()} and cannot retire what is older than {epoch}: "
                    "activate that one first"
                )
            remaining = {number: placement for number, placement in serving.placements.items() if number >= epoch}
            self._publish(serving=replace(serving, placements=remaining))
            self._free_blocks()

    def table(self, name: str) -> ShardTable:
        """A table that this shard serves.

        Raises:
            ShardUnavailable: the shard has no placement yet.
            UnknownTable: the shard has no such table.
        """
        if not self._serving.placements:
            raise ShardUnavailable(f"{self.name} has no active placement yet: give it one", name, self.name)
        return require_table(self._tables, name)

    def lookup(
        self, table: str, rows: NDArray[np.int64], epoch: int, fingerprint: str, min_version: int = 0
    ) -> tuple[NDArray[np.uint8], int, int]:
        """Look up rows.

        Args:
            table: name of the table.
            rows: row ids, int64 [n].
            epoch: epoch of the placement by which the client chose this shard.
            fingerprint: fingerprint of the table that the client expects.
            min_version: oldest version of the table that the client takes.

        Returns:
            Packed rows, uint8 [n, row_bytes]; the newest epoch that this shard knows; the table's version.

        Raises:
            ShardUnavailable: the shard has no placement yet.
            UnknownTable: the shard has no such table.
            FingerprintMismatch: the table has another fingerprint.
            WrongEpoch: the shard does not serve under that epoch.
            InvalidRequest: the row ids have the wrong dtype or shape.
            RequestTooLarge: there are more row ids than `max_rows`.
            RowOutOfRange: the table has no such row, or this shard does not hold its block.
            OldVersion: the table is older than `min_version`.
        """
        held = self.table(table)
        self._check_ids(held, rows)
        with held.reading_fresh(rows):  # before the epoch is checked: its blocks stay until the rows are gathered
            self._check_asked(held, epoch, fingerprint, min_version)
            return self._gather(held, rows), max(epoch, self.epoch), held.version

    def when_serving(self, callback: Callable[[], None]) -> None:
        """Register a callback for every activation; it is called at once if a placement is active already."""
        self._callbacks.append(callback)
        if self._serving.active:
            callback()

    def write_snapshot(
        self, uri: str | Path, table: str, prefix: str, blocks: Sequence[int], base: Mapping[int, BlockEntry]
    ) -> tuple[int, dict[int, BlockEntry]]:
        """Write the blocks that differ from `base` into files of a snapshot.

        Args:
            uri: directory or URI of the snapshot.
            table: name of the table.
            prefix: beginning of the names of the files; the shard's name is appended.
            blocks: numbers of the blocks.
            base: entries of blocks that need not be written if their digest is unchanged.

        Returns:
            The table's version, and the entries of all these blocks by number.

        Raises:
            ShardUnavailable: the shard has no placement yet.
            UnknownTable: the shard has no such table.
            RowOutOfRange: a block is not held.
            InvalidRequest: the prefix would lead out of the table's folder.
            SnapshotError: a file cannot be written.
        """
        held = self.table(table)
        rows = ((block, held.copy_block(block)) for block in blocks)
        prefix = f"{prefix}{quote(self.name, safe=' ')}-"
        return held.version, write_blocks(open_store(uri), held.spec, rows, prefix, base)

    def stats(self) -> ShardStats:
        """Values of the counters since construction."""
        self._take_counts()
        return self.counters.snapshot()

    def block_rows(self) -> BlockRows:
        """Estimated number of requested rows by table and block since construction."""
        if self.native:
            self.block_load.absorb(self.native.take_blocks())
        return self.block_load.read()

    def collect(self) -> Iterator[Sample]:
        """All metrics as samples, for an exporter."""
        self._take_counts()
        yield from self.counters.collect()
        yield Sample(SHARD_EPOCH, (), self.epoch)
        for name, table in self._tables.items():
            yield Sample(SHARD_BLOCKS, (name,), len(table.blocks))
            yield Sample(SHARD_HELD_BYTES, (name,), table.nbytes)
            yield Sample(SHARD_VERSION, (name,), table.version)

    def _take_counts(self) -> None:
        if self.native:
            self.counters.absorb(self.native.take_counts())

    def _publish(self, serving: _Serving | None = None, tables: Mapping[str, ShardTable] | None = None) -> None:
        """Replace what is served, for readers in Python and for native ones."""
        if serving is not None:
            self._serving = serving
        if tables is not None:
            self._tables = tables
        if self.native:
            known = {name: table.native for name, table in self._tables.items()}
            self.native.publish(self.epoch, set(self._serving.placements), known)

    def _intend(self, placement: Placement) -> None:
        """Declare the placement to prepare, which makes a preparation of another one stop."""
        with self._changing:
            self._check_newer(placement)
            self._intended = placement

    def _forget_others(self, placement: Placement) -> None:
        """Free the blocks that were prepared for another placement, whose preparation has ended."""
        with self._changing:
            self._check_intended(placement)
            self._publish(serving=replace(self._serving, placements=self._serving.until_active()))
            self._free_blocks()

    def _prepare_table(self, name: str, placement: Placement, sources: Sources) -> Prepared:
        table = self._tables.get(name) or self._add_table(name, placement, sources)
        _check_blocks(table.spec, placement)
        spec, mine = table.spec, placement.blocks_of(name, self.name)
        missing = np.setdiff1d(mine, table.blocks)
        copied = sources.copy(table, missing, lambda: self._check_intended(placement))
        loaded = sources.load(table, np.setdiff1d(missing, table.blocks), lambda: self._check_intended(placement))
        size = sum(spec.block_length(block) for block in missing.tolist()) * spec.row_bytes
        return Prepared(len(mine) - len(missing), copied, loaded, size)

    def _add_table(self, name: str, placement: Placement, sources: Sources) -> ShardTable:
        spec, version = sources.describe(name)
        _check_blocks(spec, placement)  # before allocating: a peer may claim any size, a placement fits one message
        table = ShardTable(spec, version, self.config.share_memory, self.compiled)
        with self._changing:
            self._check_intended(placement)
            self._publish(tables={**self._tables, name: table})
        return table

    def _free_blocks(self) -> None:
        """Drop the blocks that neither a served nor the intended placement assigns to this shard."""
        needed = [*self._serving.placements.values(), *([self._intended] if self._intended else [])]
        for name, table in self._tables.items():  # even of tables that go: other processes may have them mapped
            given = [placement.blocks_of(name, self.name) for placement in needed if name in placement.tables]
            table.drop(np.setdiff1d(table.blocks, np.concatenate([np.empty(0, np.int64), *given])))
        named = {name for placement in needed for name in placement.tables}
        self._publish(tables={name: table for name, table in self._tables.items() if name in named})

    def _check_newer(self, placement: Placement) -> None:
        if placement.epoch < self.epoch:
            raise WrongEpoch(
                f"{self.name} serves epoch {self.epoch} and does not go back to {placement.epoch}: "
                "build the new placement with a higher epoch"
            )
        active = self._serving.active
        if active is not None and active.epoch == placement.epoch and not active.same_as(placement):
            raise WrongEpoch(
                f"{self.name} serves another placement of epoch {placement.epoch}: give the new one a higher epoch"
            )

    def _check_intended(self, placement: Placement) -> None:
        if self._intended is not placement:
            raise WrongEpoch(
                f"{self.name} was given another placement while it prepared epoch {placement.epoch}: "
                "read the active placement and build on it"
            )

    def _check_holds(self, placement: Placement) -> None:
        for name in placement.tables:
            mine = placement.blocks_of(name, self.name)
            if mine.size and not (name in self._tables and self._tables[name].holds(mine)):
                raise WrongEpoch(
                    f"{self.name} does not hold the blocks of table {name!r} that epoch {placement.epoch} gives it: "
                    "prepare that placement first"
                )

    def _check_asked(self, held: ShardTable, epoch: int, fingerprint: str, min_version: int) -> None:
        if held.spec.fingerprint != fingerprint:
            raise FingerprintMismatch(
                f"table {held.spec.name!r} on {self.name} has fingerprint {held.spec.fingerprint}, not "
                f"{fingerprint}: use the snapshot and the tokenizer that the model was trained with"
            )
        served = self._serving.placements
        if epoch not in served:
            epochs = ", ".join(map(str, sorted(served)))
            raise WrongEpoch(f"{self.name} serves epoch {epochs}, asked under epoch {epoch}")
        if held.version < min_version:
            raise OldVersion(
                f"table {held.spec.name!r} on {self.name} has version {held.version}, asked for {min_version} or later"
            )

    def _check_ids(self, held: ShardTable, rows: NDArray[np.int64]) -> None:
        if rows.dtype != np.int64 or rows.ndim != 1:
            raise InvalidRequest(f"row ids must be int64 [n], got {rows.dtype} {list(rows.shape)}")
        if len(rows) > self.config.max_rows:
            raise RequestTooLarge(
                f"table {held.spec.name!r}: {len(rows)} rows in one lookup, {self.name} takes {self.config.max_rows}: "
                "split it"
            )

    def _gather(self, held: ShardTable, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        start = time.perf_counter()
        local = held.locate(rows)
        located = time.perf_counter()
        out = self._scratch.rows(len(rows), held.spec.row_bytes)
        held.gather(local, out)
        end = time.perf_counter()
        self.counters.spent("locate", located - start)
        self.counters.spent("gather", end - located)
        self.counters.answered(held.spec.name, len(rows), out.nbytes)
        self.block_load.count(held.spec, rows)
        return out


def _check_blocks(spec: TableSpec, placement: Placement) -> None:
    blocks = placement.assigned(spec.name).shape[1]
    if blocks != spec.blocks:
        raise InvalidRequest(
            f"the placement has {blocks} blocks of table {spec.name!r}, the table {spec.blocks}: "
            "build it from the specs of what is served"
        )
