"""What a pool should look like next: decisions from the shape wished for, the shards that live and what is served now.

Knows neither Ray nor the clock. The shards of a pool of N are shard-0 to shard-(N-1). One whose process has come back
is empty and elsewhere, and needs a new placement that names its new address; one that stays away is left out of the
next placement, until it is back. One that is to move to another node is succeeded by a shard there, shard-1 by
shard-1.1 and that by shard-1.2, which takes over before the other leaves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from memory_service.placement.placement import Placement, ShardAddress
from memory_service.tables.spec import TableSpec

BlockReplicas = Mapping[str, Mapping[int, int]]
"""By table and block: further replicas of the blocks that are asked for most."""


@dataclass(frozen=True)
class Whereabouts:
    """Where a shard can be reached, and which of its lives this is."""

    shard: str
    address: str
    incarnation: str
    node: str = ""
    """What it is lost with; "" if nobody knows: then it counts as alone."""


@dataclass(frozen=True)
class Shape:
    """What a pool should be. ValueError for what cannot be."""

    shards: int
    replicas: int | Mapping[str, int] = 1
    """Shards that hold each block, for all tables or by table."""
    extra: BlockReplicas = field(default_factory=dict)
    moved: Mapping[int, int] = field(default_factory=dict)
    """How many successors a shard has had, by its number; none where nothing is said."""

    def __post_init__(self) -> None:
        if self.shards < 1:
            raise ValueError(f"--shards: {self.shards} is too few; give at least 1")
        by_table = self.replicas.values() if isinstance(self.replicas, Mapping) else [self.replicas]
        for replicas in by_table:
            if not 1 <= replicas <= self.shards:
                raise ValueError(
                    f"--replicas: {replicas} copies of a block do not fit on {self.shards} shards; "
                    f"give 1 to {self.shards}, or more --shards"
                )

    @property
    def names(self) -> list[str]:
        """The shards of a pool of this shape."""
        moved = [self.moved.get(index, 0) for index in range(self.shards)]
        return [f"shard-{index}.{times}" if times else f"shard-{index}" for index, times in enumerate(moved)]

    def succeeded(self, shard: str) -> tuple[Shape, str]:
        """The same with a successor in the place of a shard, and the successor's name."""
        index = self.names.index(shard)
        shape = replace(self, moved={**self.moved, index: self.moved.get(index, 0) + 1})
        return shape, shape.names[index]

    def replicas_of(self, table: str) -> int:
        """Shards that should hold each block of a table."""
        return self.replicas.get(table, 1) if isinstance(self.replicas, Mapping) else self.replicas

    def bytes_of(self, specs: Iterable[TableSpec]) -> int:
        """Bytes of all replicas of these tables; further replicas of hot blocks not counted."""
        return sum(spec.rows * spec.row_bytes * self.replicas_of(spec.name) for spec in specs)


class PoolPlan:
    """The shape wished for, the placement served, and what has to be done about the difference."""

    def __init__(self, specs: Iterable[TableSpec], shape: Shape) -> None:
        self.specs = tuple(specs)
        self.shape = shape
        self.placement: Placement | None = None
        self._lives: frozenset[Whereabouts] = frozenset()
        self._shape: Shape | None = None
        self._next: tuple[Placement, Shape, frozenset[Whereabouts]] | None = None
        self._known: set[str] = set()
        self._epoch = 0

    def adopt(self, placement: Placement, lives: Collection[Whereabouts]) -> None:
        """Take over a placement that an earlier life of the pool made, and which these shards serve.

        The next one follows at once, whatever that life was in the midst of; shards keep what they have.
        """
        self._take(placement, None, frozenset(lives))
        self._epoch = placement.epoch

    def next_placement(self, up: Collection[Whereabouts], given_up: Collection[str] = ()) -> Placement | None:
        """Return the placement to go to now; None if there is nothing to do or somebody to wait for.

        Args:
            up: the shards that answer.
            given_up: those that do not, and are not to be waited for any longer. One that never served is waited for
                all the same: without it the shape cannot be reached, and nobody leaves.
        """
        members = [one for name in self.shape.names for one in up if one.shard == name]
        absent = set(self.shape.names) - {one.shard for one in members} - self._known.intersection(given_up)
        if absent:
            members += [one for one in up if one.shard in self._served_names.difference(self.shape.names)]
        returned = [one for one in members if one.shard in self._served_names and one not in self._lives]
        if not members or (absent and not (returned and absent.isdisjoint(self._served_names))):
            return None
        if frozenset(members) == self._lives and self.shape == self._shape:
            return None
        # A new number for every attempt: one that failed halfway must not share its epoch with another.
        self._epoch += 1
        self._next = self._place(members), self.shape, frozenset(members)
        return self._next[0]

    def served(self) -> None:
        """Take note that the last placement given out is served by all of its shards."""
        assert self._next is not None, "next_placement() comes first"
        self._take(*self._next)

    def failed(self) -> None:
        """Take note that the last placement given out did not come into force everywhere: another one has to."""
        self._shape = None

    def is_reached(self, given_up: Collection[str] = ()) -> bool:
        """Whether what is served has the shape wished for, with nobody missing but those."""
        missing = set(self.shape.names) - self._served_names
        return self.shape == self._shape and missing <= self._known.intersection(given_up)

    def is_whole(self, up: Collection[Whereabouts]) -> bool:
        """Whether what is served has the shape wished for, and every shard of it answers."""
        return self.is_reached() and self._lives.issubset(up)

    def strangers(self, shards: Iterable[str]) -> list[str]:
        """Those of these shards that are wished for and have never served."""
        return sorted(set(self.shape.names).intersection(shards) - self._known)

    def serving(self, up: Collection[Whereabouts]) -> list[Whereabouts]:
        """The shards that serve the placement, of those that answer; none unless every block is on one of them."""
        if self.placement is None:
            return []
        alive = {one.shard: one for one in self._lives.intersection(up)}
        indices = [index for index, shard in enumerate(self.placement.shards) if shard.shard in alive]
        whole = all(bool(np.isin(assigned, indices).any(axis=0).all()) for assigned in self.placement.tables.values())
        return [alive[self.placement.shards[index].shard] for index in indices] if whole else []

    @property
    def names(self) -> list[str]:
        """The shards that are wished for or serve."""
        return list(dict.fromkeys([*self.shape.names, *self._served_names]))

    def _take(self, placement: Placement, shape: Shape | None, lives: frozenset[Whereabouts]) -> None:
        self.placement, self._shape, self._lives = placement, shape, lives
        self._known = (self._known | self._served_names).intersection(self.shape.names)

    @property
    def _served_names(self) -> set[str]:
        return {shard.shard for shard in self.placement.shards} if self.placement else set()

    def _place(self, members: Sequence[Whereabouts]) -> Placement:
        addresses = [ShardAddress(one.shard, one.address) for one in members]
        replicas = {spec.name: min(self.shape.replicas_of(spec.name), len(members)) for spec in self.specs}
        extra = {spec.name: _by_block(spec, self.shape.extra.get(spec.name, {})) for spec in self.specs}
        nodes = {one.shard: one.node for one in members}
        if self.placement is None:
            return Placement.build(self._epoch, addresses, self.specs, replicas, extra, nodes)
        return self.placement.evolve(self._epoch, addresses, replicas, extra, nodes)


def _by_block(spec: TableSpec, extra: Mapping[int, int]) -> NDArray[np.int64]:
    counts = np.zeros(spec.blocks, np.int64)
    counts[list(extra.keys())] = list(extra.values())
    return counts
