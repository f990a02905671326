"""Which shard serves which block: an epoch's shards and tables, and the placement that follows from another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory_service.errors import UnknownTable
from memory_service.placement.assignment import NOBODY, assign_blocks, check_names, reassign_blocks
from memory_service.placement.failure_domains import number_domains
from memory_service.tables.spec import TableSpec

Extra = Mapping[str, NDArray[np.integer]]
"""By table name, [blocks]: replicas of each block beyond those that all blocks of the table have."""


@dataclass(frozen=True)
class ShardAddress:
    """A shard's name and where its control door is."""

    shard: str
    address: str
    """host:port; empty until the shard has started."""


@dataclass(frozen=True, eq=False)
class Placement:
    """Epoch, shards, and for each table the shards of each block."""

    epoch: int
    shards: tuple[ShardAddress, ...]
    tables: Mapping[str, NDArray[np.uint16]]
    """By table name, uint16 [replicas, blocks], indices into `shards`; NOBODY where a block has fewer replicas."""

    def __post_init__(self) -> None:
        if self.epoch < 1:
            raise ValueError(f"epoch={self.epoch} is not possible: epochs count from 1")
        check_names([shard.shard for shard in self.shards])
        for table, assigned in self.tables.items():
            self._check_assigned(table, assigned)

    def _check_assigned(self, table: str, assigned: NDArray[np.uint16]) -> None:
        if assigned.ndim != 2 or assigned.dtype != np.uint16 or not assigned.size:
            raise ValueError(
                f"placement of table {table!r} must be uint16 [replicas, blocks], "
                f"got {assigned.dtype} {list(assigned.shape)}"
            )
        strange = assigned[(assigned >= len(self.shards)) & (assigned != NOBODY)]
        if strange.size:
            raise ValueError(f"placement of table {table!r} names shard {strange[0]}, there are {len(self.shards)}")
        if (bare := np.flatnonzero(assigned[0] == NOBODY)).size:
            raise ValueError(f"placement of table {table!r} gives block {bare[0]} to nobody as its first replica")

    @classmethod
    def build(
        cls,
        epoch: int,
        shards: Sequence[ShardAddress],
        specs: Iterable[TableSpec],
        replicas: int | Mapping[str, int] = 1,
        extra: Extra | None = None,
        domains: Mapping[str, str] | None = None,
    ) -> Placement:
        """Assign every block of the tables to `replicas` of the shards, by table or the same for all, and to `extra`.

        Shards of one domain, given by shard (none or "": its own), do not have the same block as far as that can be.
        Without these and `extra` it depends on the shards' names only. ValueError if there are fewer shards than
        replicas; extra replicas beyond the number of shards are left out.
        """
        names = [shard.shard for shard in shards]
        tables = {
            spec.name: assign_blocks(spec.name, spec.blocks, names, _replicas_of(spec.name, replicas)) for spec in specs
        }
        first = cls(epoch, tuple(shards), tables)
        shared = len(set(number_domains(names, domains).tolist())) < len(names)
        return first.evolve(epoch, shards, replicas, extra, domains) if extra or shared else first

    def evolve(
        self,
        epoch: int,
        shards: Sequence[ShardAddress],
        replicas: int | Mapping[str, int] = 1,
        extra: Extra | None = None,
        domains: Mapping[str, str] | None = None,
    ) -> Placement:
        """The placement for another set of shards, replicas or extra replicas that moves as few blocks as can be.

        Shards are known by their names; one that joins gets its share, those that leave lose all. Replicas of a block
        that have come into one domain are moved apart. ValueError and limits as for `build`.
        """
        names = [shard.shard for shard in shards]
        numbers = number_domains(names, domains)
        tables = {}
        for table in self.tables:
            wanted = np.full(self.tables[table].shape[1], _replicas_of(table, replicas))
            if extra and table in extra:
                wanted = np.maximum(wanted, np.minimum(wanted + extra[table], len(names)))
            tables[table] = reassign_blocks(table, self.held(table, names), wanted, names, numbers)
        return Placement(epoch, tuple(shards), tables)

    def moves_from(self, other: Placement) -> int:
        """Block replicas that some shard has under this placement and not under the other."""
        names = [shard.shard for shard in self.shards]
        return sum(int((self.held(table, names) & ~other.held(table, names)).sum()) for table in self.tables)

    def same_as(self, other: Placement) -> bool:
        """Whether two placements say the same."""
        return (self.epoch, self.shards, self.tables.keys()) == (
            other.epoch,
            other.shards,
            other.tables.keys(),
        ) and all(np.array_equal(assigned, other.tables[table]) for table, assigned in self.tables.items())

    def held(self, table: str, shards: Sequence[str]) -> NDArray[np.bool_]:
        """Which blocks of a table each of these shards has, bool [blocks, shards]; UnknownTable."""
        column = {name: index for index, name in enumerate(shards)}
        columns = np.array([column.get(shard.shard, len(shards)) for shard in self.shards])
        assigned = self.assigned(table)
        held = np.zeros((assigned.shape[1], len(shards) + 1), bool)
        for replica in assigned:
            given = np.flatnonzero(replica != NOBODY)
            held[given, columns[replica[given]]] = True
        return held[:, :-1]

    def assigned(self, table: str) -> NDArray[np.uint16]:
        """The shards of a table's blocks, uint16 [replicas, blocks], or UnknownTable."""
        if table not in self.tables:
            raise UnknownTable(f"the placement of epoch {self.epoch} has no table {table!r}")
        return self.tables[table]

    def blocks_of(self, table: str, shard: str, replica: int | None = None) -> NDArray[np.int64]:
        """Blocks of a table that a shard serves, ascending; with `replica`, only those it serves as that replica."""
        names = [address.shard for address in self.shards]
        if shard not in names:
            return np.empty(0, np.int64)
        mine = self.assigned(table) == names.index(shard)
        return np.flatnonzero(mine.any(axis=0) if replica is None else mine[replica])


def _replicas_of(table: str, replicas: int | Mapping[str, int]) -> int:
    if isinstance(replicas, int):
        return replicas
    if table not in replicas:
        raise ValueError(f"replicas: nothing given for table {table!r}, only for {sorted(replicas)}")
    return replicas[table]
