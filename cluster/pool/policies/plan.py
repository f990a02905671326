"""Which placement a memory pool should serve next, given the shape it should have and the shards that answer.

Knows neither Ray nor the clock. The shards of a pool of N are shard-0 to shard-(N-1). A shard whose process has
restarted is empty and has a new address, so it needs a new placement; a shard that stays away is left out of the next
placement until it is back. A shard that should move to another node is succeeded by a new shard there: shard-1 by
shard-1.1, and that by shard-1.2. The successor takes over before its predecessor leaves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from memory_service.placement.placement import Placement, ShardAddress
from memory_service.tables.spec import TableSpec

BlockReplicas = Mapping[str, Mapping[int, int]]
"""Extra replicas of the most requested blocks, by table and block."""


@dataclass(frozen=True)
class Whereabouts:
    """A process of a shard: its address, its incarnation and its node."""

    shard: str
    address: str
    incarnation: str
    """Identifies the process: a restarted shard has another incarnation."""
    node: str = ""
    """The machine that the shard is lost with. A shard on an unknown node ("") is a failure domain of its own."""


@dataclass(frozen=True)
class Shape:
    """What a pool should be: how many shards, and how many replicas of each block.

    Raises:
        ValueError: a number is not an integer, or out of range.
    """

    shards: int
    """Number of shards."""
    replicas: int | Mapping[str, int] = 1
    """Shards that hold each block, for all tables or by table."""
    extra: BlockReplicas = field(default_factory=dict)
    """Replicas of hot blocks beyond `replicas`."""
    moved: Mapping[int, int] = field(default_factory=dict)
    """Number of successors that each shard has had, by shard number; 0 where absent."""

    def __post_init__(self) -> None:
        _require_integer("shards", self.shards)
        if self.shards < 1:
            raise ValueError(f"shards: {self.shards} is too few; give at least 1")
        for replicas in self.replicas.values() if isinstance(self.replicas, Mapping) else [self.replicas]:
            _require_integer("replicas", replicas)
            if not 1 <= replicas <= self.shards:
                raise ValueError(
                    f"replicas: {replicas} copies of a block do not fit on {self.shards} shards; "
                    f"give 1 to {self.shards}, or more `shards`"
                )

    @property
    def names(self) -> list[str]:
        """Names of the shards of a pool of this shape."""
        moved = [self.moved.get(index, 0) for index in range(self.shards)]
        return [f"shard-{index}.{times}" if times else f"shard-{index}" for index, times in enumerate(moved)]

    def succeeded(self, shard: str) -> tuple[Shape, str]:
        """Return the shape with a successor in the place of a shard, and the successor's name."""
        index = self.names.index(shard)
        shape = replace(self, moved={**self.moved, index: self.moved.get(index, 0) + 1})
        return shape, shape.names[index]

    def replicas_of(self, table: str) -> int:
        """Shards that should hold each block of a table."""
        return self.replicas.get(table, 1) if isinstance(self.replicas, Mapping) else self.replicas

    def bytes_of(self, specs: Iterable[TableSpec]) -> int:
        """Bytes of all replicas of these tables, without the extra replicas of hot blocks."""
        return sum(spec.rows * spec.row_bytes * self.replicas_of(spec.name) for spec in specs)


@dataclass(frozen=True)
class Goal:
    """What the shards remember for a pool whose own process has to start again."""

    shape: Shape
    """The shape that the pool should have."""
    fallback: Shape | None = None
    """The shape to go back to if `shape` cannot be reached; None unless a change of shape is under way."""


@dataclass(frozen=True, eq=False)
class Layout:
    """A placement, the processes that serve it, and the shape that it was made for."""

    placement: Placement
    processes: frozenset[Whereabouts]
    shape: Shape | None
    """None if unknown: then another layout has to follow."""

    @property
    def names(self) -> frozenset[str]:
        """Names of the shards."""
        return frozenset(shard.shard for shard in self.placement.shards)


@dataclass(frozen=True, eq=False)
class PoolPlan:
    """The shape that a pool should have, the layout that it serves, and the layout that it is going to.

    Raises:
        ValueError: the shape gives a number of replicas for a table that does not exist.
    """

    specs: tuple[TableSpec, ...]
    wanted: Shape
    served: Layout | None = None
    target: Layout | None = None
    """The layout that shards are preparing; None if no reshape is under way."""
    epoch: int = 0
    """The highest epoch given to a layout so far."""
    known: frozenset[str] = frozenset()
    """The wanted shards that have served at some time."""

    def __post_init__(self) -> None:
        tables = {spec.name for spec in self.specs}
        by_table = self.wanted.replicas if isinstance(self.wanted.replicas, Mapping) else {}
        if unknown := sorted(by_table.keys() - tables):
            raise ValueError(f"replicas: there is no table {unknown[0]!r}; the tables are {', '.join(sorted(tables))}")

    def adopting(self, placement: Placement, processes: Collection[Whereabouts]) -> PoolPlan:
        """Take over a placement that an earlier process of the pool made and that these shards serve.

        Another layout follows at once, whatever that process was doing; shards keep their blocks.
        """
        return replace(self, epoch=placement.epoch, target=Layout(placement, frozenset(processes), None)).activated()

    def advanced(self, up: Collection[Whereabouts], given_up: Collection[str] = ()) -> PoolPlan:
        """Set the next layout as the target, unless the present layout will do or a shard has to be waited for.

        Args:
            up: the shards that answer.
            given_up: shards that do not answer and should not be waited for any longer. A shard that has never served
                is waited for all the same: without it the shape cannot be reached, and no other shard leaves.
        """
        members = self._members(up, given_up)
        if not members or self._serves(members):
            return self
        # Every attempt gets its own epoch: a placement that failed halfway must not share its number with another.
        advanced = replace(self, epoch=self.epoch + 1)
        return replace(advanced, target=Layout(advanced._place(members), frozenset(members), self.wanted))

    def activated(self) -> PoolPlan:
        """The plan once every shard of the target serves it."""
        assert self.target is not None, "advanced() comes first"
        known = (self.known | self.served_names | self.target.names).intersection(self.wanted.names)
        return replace(self, served=self.target, target=None, known=known)

    def failed(self) -> PoolPlan:
        """The plan once the target was not activated on every shard: another layout has to follow."""
        return replace(self, target=None, served=self.served and replace(self.served, shape=None))

    def is_reached(self, given_up: Collection[str] = ()) -> bool:
        """Whether the layout served has the wanted shape, and lacks no other shards than these."""
        missing = self.served_names.symmetric_difference(self.wanted.names)
        return (
            self.served is not None
            and self.served.shape == self.wanted
            and missing <= self.known.intersection(given_up)
        )

    def is_whole(self, up: Collection[Whereabouts]) -> bool:
        """Whether the layout served has the wanted shape, and every shard of it answers."""
        return self.served is not None and self.is_reached() and self.served.processes.issubset(up)

    def unplaced(self, shards: Iterable[str]) -> list[str]:
        """Those of these shards that are wanted and have never served."""
        return sorted(set(self.wanted.names).intersection(shards) - self.known)

    def serving(self, up: Collection[Whereabouts]) -> list[Whereabouts]:
        """The shards that serve the placement, of those that answer; none unless every block is on one of them."""
        if self.served is None:
            return []
        placement = self.served.placement
        alive = {where.shard: where for where in self.served.processes.intersection(up)}
        indices = [index for index, shard in enumerate(placement.shards) if shard.shard in alive]
        whole = all(bool(np.isin(assigned, indices).any(axis=0).all()) for assigned in placement.tables.values())
        return [alive[placement.shards[index].shard] for index in indices] if whole else []

    @property
    def placement(self) -> Placement | None:
        """The placement served; None before the first."""
        return self.served.placement if self.served else None

    @property
    def served_names(self) -> frozenset[str]:
        """Names of the shards that serve."""
        return self.served.names if self.served else frozenset()

    @property
    def names(self) -> list[str]:
        """Names of the shards that are wanted, serve or prepare."""
        target = self.target.names if self.target else ()
        return list(dict.fromkeys([*self.wanted.names, *sorted(self.served_names), *sorted(target)]))

    def _members(self, up: Collection[Whereabouts], given_up: Collection[str]) -> list[Whereabouts]:
        """The shards of the next layout; none while a shard has to be waited for."""
        members = [where for name in self.wanted.names for where in up if where.shard == name]
        absent = set(self.wanted.names) - {where.shard for where in members} - self.known.intersection(given_up)
        if absent:
            leaving = self.served_names.difference(self.wanted.names)
            members += [where for where in up if where.shard in leaving]
        processes = self.served.processes if self.served else frozenset()
        restarted = [where for where in members if where.shard in self.served_names and where not in processes]
        healable = restarted and absent.isdisjoint(self.served_names)
        return members if not absent or healable else []

    def _serves(self, members: Collection[Whereabouts]) -> bool:
        served = self.served
        return served is not None and served.processes == frozenset(members) and served.shape == self.wanted

    def _place(self, members: Sequence[Whereabouts]) -> Placement:
        addresses = [ShardAddress(where.shard, where.address) for where in members]
        replicas = {spec.name: min(self.wanted.replicas_of(spec.name), len(members)) for spec in self.specs}
        extra = {spec.name: _by_block(spec, self.wanted.extra.get(spec.name, {})) for spec in self.specs}
        nodes = {where.shard: where.node for where in members}
        if self.placement is None:
            return Placement.build(self.epoch, addresses, self.specs, replicas, extra, nodes)
        return self.placement.evolve(self.epoch, addresses, replicas, extra, nodes)


def _require_integer(name: str, value: object) -> None:
    if not isinstance(value, int | np.integer):
        raise ValueError(f"{name}: {value!r} is not a whole number; give a number such as 2")


def _by_block(spec: TableSpec, extra: Mapping[int, int]) -> NDArray[np.int64]:
    counts = np.zeros(spec.blocks, np.int64)
    counts[list(extra.keys())] = list(extra.values())
    return counts
