"""Snapshots of a running memory: every shard writes blocks that it holds, and one process seals the generation."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memory_service.control.client import ControlClient
from memory_service.control.each_shard import describing, each_shard
from memory_service.control.shard_directory import ShardDirectory
from memory_service.errors import MemoryServiceError, RowOutOfRange, ShardUnavailable, SnapshotError
from memory_service.placement.placement import Placement, ShardAddress
from memory_service.protocol.security import ClientSecurity
from memory_service.snapshots.manifest import BlockEntry, TableEntry
from memory_service.snapshots.snapshot import Snapshot
from memory_service.snapshots.writer import NewGeneration
from memory_service.tables.spec import TableSpec

_ANSWER_S = 5.0  # a shard that does not describe itself within this time is not asked to write

_Written = tuple[int, dict[int, BlockEntry]] | MemoryServiceError


def snapshot_shards(directory: ShardDirectory, uri: str | Path, full: bool = False) -> Snapshot:
    """Snapshot a running memory, see MemoryClient.snapshot; each block is written by its first replica that can.

    Raises:
        ShardUnavailable: none of a block's replicas can write it.
        SnapshotError: the directory cannot be used, or shards serve different versions of a table.
    """
    specs = list(directory.specs.values())
    with NewGeneration(uri, specs, full) as new:
        writers = _Writers(directory.placement, directory.security)
        return new.seal([_write_table(new, spec, writers) for spec in specs])


class _Writers:
    """The shards of a placement that can write, less those that failed to."""

    def __init__(self, placement: Placement, security: ClientSecurity) -> None:
        self.placement = placement
        self.security = security
        answers = each_shard(placement.shards, describing(_ANSWER_S), security)
        self._able = {index for index, answer in enumerate(answers) if not isinstance(answer, MemoryServiceError)}
        errors = [answer for answer in answers if isinstance(answer, MemoryServiceError)]
        self._last_error = errors[-1] if errors else None

    def share(self, table: str, blocks: NDArray[np.int64]) -> dict[ShardAddress, list[int]]:
        """Assign each block to the first of its replicas that can write it."""
        assigned = self.placement.assigned(table)[:, blocks]
        able = np.isin(assigned, sorted(self._able))
        if not (possible := able.any(axis=0)).all():
            raise self._no_writer(table, int(blocks[~possible][0]))
        chosen = assigned[able.argmax(axis=0), np.arange(len(blocks))]
        return {self.placement.shards[shard]: blocks[chosen == shard].tolist() for shard in np.unique(chosen)}

    def give_up(self, shard: ShardAddress, error: MemoryServiceError) -> None:
        """Exclude a shard that failed."""
        self._able.discard(self.placement.shards.index(shard))
        self._last_error = error

    def _no_writer(self, table: str, block: int) -> ShardUnavailable:
        replicas = self.placement.assigned(table)[:, block].tolist()
        names = ", ".join(shard.shard for index, shard in enumerate(self.placement.shards) if index in replicas)
        why = f": {self._last_error}" if self._last_error else ""
        return ShardUnavailable(
            f"table {table!r} block {block}: none of its shards ({names}) can write it{why}. "
            "Try again once they are back",
            table,
            names,
            self.placement.epoch,
        )


def _write_table(new: NewGeneration, spec: TableSpec, writers: _Writers) -> TableEntry:
    blocks: dict[int, BlockEntry] = {}
    versions: set[int] = set()
    for turn in count():
        left = np.setdiff1d(np.arange(spec.blocks), list(blocks))
        if not left.size:
            break
        shares = writers.share(spec.name, left)
        prefix = f"{new.prefix}{turn}-"  # a shard that writes twice must not overwrite its first files
        for shard, result in zip(shares, _write_shares(new, spec, prefix, shares, writers.security), strict=True):
            if isinstance(result, MemoryServiceError):
                writers.give_up(shard, result)
            else:
                versions.add(result[0])
                blocks |= {block: result[1][block] for block in shares[shard]}
    if len(versions) != 1:
        raise SnapshotError(f"table {spec.name!r}: the shards are at versions {sorted(versions)}: try again")
    return TableEntry(spec, versions.pop(), tuple(blocks[block] for block in range(spec.blocks)))


def _write_shares(
    new: NewGeneration,
    spec: TableSpec,
    prefix: str,
    shares: Mapping[ShardAddress, list[int]],
    security: ClientSecurity,
) -> list[_Written]:
    base = new.base(spec)
    by_address = {shard.address: blocks for shard, blocks in shares.items()}

    def write(control: ControlClient) -> _Written:
        blocks = by_address[control.address]
        mine = {block: base[block] for block in blocks if block in base}
        try:
            return control.snapshot(new.store.uri, spec.name, prefix, blocks, mine)
        except (
            ShardUnavailable,
            RowOutOfRange,
        ) as error:  # another replica may be able to
            return error

    return each_shard(list(shares), write, security)
