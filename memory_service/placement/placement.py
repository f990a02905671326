"""Placements: the shards of an epoch and the blocks that each serves, and the next placement after a change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory_service.errors import UnknownTable
from memory_service.placement.assignment import UNASSIGNED, assign_blocks, check_names, reassign_blocks
from memory_service.placement.failure_domains import number_domains
from memory_service.tables.spec import TableSpec

Extra = Mapping[str, NDArray[np.integer]]
"""Extra replicas of each block, [blocks], by table name; they add to the replicas that all blocks of the table have."""


@dataclass(frozen=True)
class ShardAddress:
    """Name and control address of a shard."""

    shard: str
    """Name of the shard."""
    address: str
    """host:port of its control door; "" until the shard has started."""


@dataclass(frozen=True, eq=False)
class Placement:
    """An epoch, its shards, and the shards of every block.

    Raises:
        ValueError: the epoch is below 1, shard names repeat, or an assignment has the wrong type or shape, names a
            shard that does not exist, or leaves a block without a first replica.
    """

    epoch: int
    """Number of the placement, from 1; later placements have higher numbers."""
    shards: tuple[ShardAddress, ...]
    """All shards of the placement."""
    tables: Mapping[str, NDArray[np.uint16]]
    """Assignment of each table by name: uint16 [replicas, blocks], indices into `shards`. UNASSIGNED marks the missing
    replicas of blocks that have fewer than others."""

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
        unknown = assigned[(assigned >= len(self.shards)) & (assigned != UNASSIGNED)]
        if unknown.size:
            raise ValueError(f"placement of table {table!r} names shard {unknown[0]}, there are {len(self.shards)}")
        if (unassigned := np.flatnonzero(assigned[0] == UNASSIGNED)).size:
            raise ValueError(
                f"placement of table {table!r} has no shard for the first replica of block {unassigned[0]}"
            )

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
        """Build the first placement of some tables. Without `extra` and `domains` it depends on the names only.

        Args:
            epoch: number of the placement.
            shards: the shards.
            specs: the tables.
            replicas: replicas of every block, the same for all tables or by table name.
            extra: extra replicas of blocks; those beyond the number of shards are left out.
            domains: failure domain by shard name; a shard without one, or with "", is a domain of its own. Replicas of
                a block are put into different domains as far as possible.

        Raises:
            ValueError: there are fewer shards than replicas, or `replicas` lacks a table.
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
        """Build the next placement for other shards, replicas or extra replicas, moving as few blocks as possible.

        Shards are identified by name. A shard that joins gets its share of the blocks, and a shard that leaves loses
        all of them. Replicas of a block that are in the same domain are moved apart.

        Args:
            epoch: number of the new placement.
            shards: the shards of the new placement.
            replicas: see `build`.
            extra: see `build`.
            domains: see `build`.

        Raises:
            ValueError: there are fewer shards than replicas, or `replicas` lacks a table.
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
        """Number of block replicas that are on a shard under this placement but not under the other."""
        names = [shard.shard for shard in self.shards]
        return sum(int((self.held(table, names) & ~other.held(table, names)).sum()) for table in self.tables)

    def same_as(self, other: Placement) -> bool:
        """Whether two placements have the same epoch, shards and assignments."""
        return (self.epoch, self.shards, self.tables.keys()) == (
            other.epoch,
            other.shards,
            other.tables.keys(),
        ) and all(np.array_equal(assigned, other.tables[table]) for table, assigned in self.tables.items())

    def held(self, table: str, shards: Sequence[str]) -> NDArray[np.bool_]:
        """Blocks of a table that each of the named shards has, bool [blocks, shards].

        Raises:
            UnknownTable: the placement has no table of that name.
        """
        column = {name: index for index, name in enumerate(shards)}
        columns = np.array([column.get(shard.shard, len(shards)) for shard in self.shards])
        assigned = self.assigned(table)
        held = np.zeros((assigned.shape[1], len(shards) + 1), bool)
        for replica in assigned:
            given = np.flatnonzero(replica != UNASSIGNED)
            held[given, columns[replica[given]]] = True
        return held[:, :-1]

    def assigned(self, table: str) -> NDArray[np.uint16]:
        """Assignment of a table's blocks, uint16 [replicas, blocks], indices into `shards`.

        Raises:
            UnknownTable: the placement has no table of that name.
        """
        if table not in self.tables:
            raise UnknownTable(f"the placement of epoch {self.epoch} has no table {table!r}")
        return self.tables[table]

    def blocks_of(self, table: str, shard: str, replica: int | None = None) -> NDArray[np.int64]:
        """Blocks of a table that a shard serves, in ascending order.

        Args:
            table: name of the table.
            shard: name of the shard; one that is not in the placement serves no block.
            replica: count only the blocks that it serves as this replica, from 0.

        Raises:
            UnknownTable: the placement has no table of that name.
        """
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
