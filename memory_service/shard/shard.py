"""A shard: tables, the placements it answers under, and lookups that check what they were asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from memory_service.errors import FingerprintMismatch, InvalidRequest, RequestTooLarge, ShardUnavailable, WrongEpoch
from memory_service.memory import require_table
from memory_service.metrics.catalogue import SHARD_BLOCKS, SHARD_EPOCH, SHARD_HELD_BYTES, SHARD_VERSION
from memory_service.metrics.metrics import Sample
from memory_service.placement.placement import Placement
from memory_service.protocol.reports import Prepared, ShardStats
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
    """Limits of a shard, what its memory is, and where."""

    max_rows: int = 1 << 20
    """Rows in one lookup; a larger one is refused before anything is allocated for it."""
    share_memory: bool = False
    """Let other processes of this user on this machine read the tables directly; costs the huge pages."""
    node: str = ""
    """What it runs on and is lost with; for people to read."""


@dataclass(frozen=True)
class _Serving:
    """What lookups are answered under: swapped as a whole."""

    active: Placement | None = None
    """The placement in force."""
    placements: Mapping[int, Placement] = field(default_factory=dict)
    """By epoch: the one in force, older ones not yet retired, and one that is prepared."""

    def epoch(self) -> int:
        """The epoch in force, 0 before the first."""
        return self.active.epoch if self.active else 0

    def until_active(self) -> dict[int, Placement]:
        """All but one that is prepared."""
        return {epoch: placement for epoch, placement in self.placements.items() if epoch <= self.epoch()}


class Shard:
    """Holds blocks and answers lookups, while blocks come and go. Safe to use from several threads.

    A change of placement is `prepare` on every shard of the new one, then `activate` on every shard, and in the end
    `retire`. From the preparation to the retirement the old epoch is answered as well as the new one.
    """

    def __init__(self, name: str, config: ShardConfig | None = None) -> None:
        self.name = name
        self.config = config or ShardConfig()
        self._preparing = threading.Lock()
        self._changing = threading.Lock()  # of what follows, short; never held while blocks travel
        self._tables: Mapping[str, ShardTable] = {}
        self._serving = _Serving()
        self._intended: Placement | None = None  # the last one to be prepared and not activated, ready or not
        self.counters = ShardCounters()
        self._scratch = Scratch()
        self.block_load = BlockLoad()
        self._callbacks: list[Callable[[], None]] = []

    @property
    def placement(self) -> Placement | None:
        """The placement in force; None before the first activation."""
        return self._serving.active

    @property
    def epoch(self) -> int:
        """The epoch in force, 0 before the first activation."""
        return self._serving.epoch()

    @property
    def tables(self) -> Mapping[str, ShardTable]:
        """The tables of which this shard holds blocks, or may."""
        return self._tables

    def prepare(
        self, placement: Placement, current: Placement | None = None, snapshot_uri: str | Path | None = None
    ) -> Prepared:
        """Come to hold the blocks that a placement gives this shard, and answer lookups under it from then on.

        Blocks held already are kept; others are copied from the shards that `current` names for them, or read from
        the snapshot where none of those gives them. After a failure, what has come stays, for the next attempt. A
        placement prepared earlier and never activated is forgotten, and its blocks are freed.

        WrongEpoch if the placement is older than the one in force, or another one was prepared meanwhile.
        ShardUnavailable or SnapshotError naming table and block if nobody gives a block. OutOfMemory.
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
                self._serving = replace(
                    self._serving, placements={**self._serving.placements, placement.epoch: placement}
                )
        return sum(parts, Prepared())

    def activate(self, placement: Placement) -> None:
        """Name a placement as the one in force; older ones are answered until `retire`.

        WrongEpoch if it is older than the one in force, or if this shard does not hold its blocks.
        """
        with self._changing:
            self._check_newer(placement)
            self._check_holds(placement)
            placements = {**self._serving.until_active(), placement.epoch: placement}
            if self._intended is not None and self._intended.epoch <= placement.epoch:
                self._intended = None
            self._serving = _Serving(placement, placements)
        for callback in self._callbacks:
            callback()

    def retire(self, epoch: int) -> None:
        """Stop answering under placements older than `epoch`, and free the blocks that only they gave this shard.

        WrongEpoch if the placement in force is itself older.
        """
        with self._changing:
            serving = self._serving
            if serving.epoch() < epoch:
                raise WrongEpoch(
                    f"{self.name} serves epoch {serving.epoch()} and cannot retire what is older than {epoch}: "
                    "activate that one first"
                )
            left = {one: placement for one, placement in serving.placements.items() if one >= epoch}
            self._serving = replace(serving, placements=left)
            self._free_blocks()

    def lookup(
        self, table: str, rows: NDArray[np.int64], epoch: int, fingerprint: str
    ) -> tuple[NDArray[np.uint8], int, int]:
        """Packed rows [n, row_bytes] of row ids [n], the newest epoch that is known here, and the table's version."""
        held = self._table(table)
        with held.reading():  # before the epoch is checked: its blocks stay until the rows are gathered
            self._check_asked(held, epoch, fingerprint)
            return self._gather(held, rows), max(epoch, self.epoch), held.version

    def when_serving(self, callback: Callable[[], None]) -> None:
        """Call back after every activation, and at once if there was one already."""
        self._callbacks.append(callback)
        if self._serving.active:
            callback()

    def write_snapshot(
        self, uri: str | Path, table: str, prefix: str, blocks: Sequence[int], base: Mapping[int, BlockEntry]
    ) -> tuple[int, dict[int, BlockEntry]]:
        """Write those of some blocks that differ from `base`; the table's version and the entries of them all.

        RowOutOfRange if a block is not held. InvalidRequest for a prefix that would lead out of the table's folder.
        """
        held = self._table(table)
        rows = ((block, held.copy_block(block)) for block in blocks)
        prefix = f"{prefix}{quote(self.name, safe=' ')}-"
        return held.version, write_blocks(open_store(uri), held.spec, rows, prefix, base)

    def stats(self) -> ShardStats:
        """Counters since construction."""
        return self.counters.snapshot()

    def collect(self) -> Iterator[Sample]:
        """The same and more as samples of metrics, for an exporter."""
        yield from self.counters.collect()
        yield Sample(SHARD_EPOCH, (), self.epoch)
        for name, table in self._tables.items():
            yield Sample(SHARD_BLOCKS, (name,), len(table.blocks))
            yield Sample(SHARD_HELD_BYTES, (name,), table.nbytes)
            yield Sample(SHARD_VERSION, (name,), table.version)

    def _intend(self, placement: Placement) -> None:
        """Have a preparation under way for another placement end."""
        with self._changing:
            self._check_newer(placement)
            self._intended = placement

    def _forget_others(self, placement: Placement) -> None:
        """Free what was prepared for another placement, that one's preparation having ended."""
        with self._changing:
            self._check_intended(placement)
            self._serving = replace(self._serving, placements=self._serving.until_active())
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
        _check_blocks(spec, placement)  # before anything is allocated: of a placement, no more blocks fit one message
        table = ShardTable(spec, version, self.config.share_memory)
        with self._changing:
            self._check_intended(placement)
            self._tables = {**self._tables, name: table}
        return table

    def _free_blocks(self) -> None:
        """Let go of what neither a served nor the intended placement gives this shard."""
        needed = [*self._serving.placements.values(), *([self._intended] if self._intended else [])]
        for name, table in self._tables.items():  # those that go as a whole too: another process may have them mapped
            given = [placement.blocks_of(name, self.name) for placement in needed if name in placement.tables]
            table.drop(np.setdiff1d(table.blocks, np.concatenate([np.empty(0, np.int64), *given])))
        named = {name for placement in needed for name in placement.tables}
        self._tables = {name: table for name, table in self._tables.items() if name in named}

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
                "read the placement in force and build on it"
            )

    def _check_holds(self, placement: Placement) -> None:
        for name in placement.tables:
            mine = placement.blocks_of(name, self.name)
            if mine.size and not (name in self._tables and self._tables[name].holds(mine)):
                raise WrongEpoch(
                    f"{self.name} does not hold the blocks of table {name!r} that epoch {placement.epoch} gives it: "
                    "prepare that placement first"
                )

    def _table(self, table: str) -> ShardTable:
        if not self._serving.placements:
            raise ShardUnavailable(f"{self.name} has no active placement yet: give it one", table, self.name)
        return require_table(self._tables, table)

    def _check_asked(self, held: ShardTable, epoch: int, fingerprint: str) -> None:
        if held.spec.fingerprint != fingerprint:
            raise FingerprintMismatch(
                f"table {held.spec.name!r} on {self.name} has fingerprint {held.spec.fingerprint}, asked for "
                f"{fingerprint}: use the snapshot and the tokenizer that the model was trained with"
            )
        served = self._serving.placements
        if epoch not in served:
            epochs = ", ".join(map(str, sorted(served)))
            raise WrongEpoch(f"{self.name} serves epoch {epochs}, asked under epoch {epoch}")

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
