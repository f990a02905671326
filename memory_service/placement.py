"""Which shard serves which block.

Blocks are assigned by rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit rates",
1998): every shard scores every block, the highest score wins, so adding a shard moves only the blocks that it wins.
A cap on each shard's load, with overflow to the next-best shard, follows Mirrokni, Thorup and Zadimoghaddam,
"Consistent hashing with bounded loads", 2016. Neighbouring blocks score independently, so every shard gets a mix of
columns.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from memory_service.errors import UnknownTable
from memory_service.spec import TableSpec

MAX_SHARDS = 1 << 16
NOBODY = 0xFFFF
"""In a placement: a block has no further replica."""


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
    """By table name, uint16 [replicas, blocks], indices into `shards`; replica 0 is asked first."""

    def __post_init__(self) -> None:
        if self.epoch < 1:
            raise ValueError(f"epoch={self.epoch} is not possible: epochs count from 1")
        _check_names([shard.shard for shard in self.shards])
        for table, assigned in self.tables.items():
            if assigned.ndim != 2 or assigned.dtype != np.uint16 or not assigned.size:
                raise ValueError(
                    f"placement of table {table!r} must be uint16 [replicas, blocks], "
                    f"got {assigned.dtype} {list(assigned.shape)}"
                )
            if int(assigned.max()) >= len(self.shards):
                raise ValueError(
                    f"placement of table {table!r} names shard {assigned.max()}, there are {len(self.shards)}"
                )

    @classmethod
    def build(
        cls, epoch: int, shards: Sequence[ShardAddress], specs: Iterable[TableSpec], replicas: int = 1
    ) -> "Placement":
        """Assign every block of the tables to `replicas` of the shards."""
        names = [shard.shard for shard in shards]
        tables = {spec.name: assign_blocks(spec.name, spec.blocks, names, replicas) for spec in specs}
        return cls(epoch, tuple(shards), tables)

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


def assign_blocks(
    table: str, blocks: int, shards: Sequence[str], replicas: int = 1, slack: float = 1.05
) -> NDArray[np.uint16]:
    """Shards of each block, uint16 [replicas, blocks], indices into `shards`.

    Depends on the names only. No shard gets more than ceil(slack * blocks * replicas / shards) blocks, and the
    replicas of a block are on distinct shards. ValueError for arguments that cannot be met.
    """
    _check_names(shards)
    if not 1 <= replicas <= len(shards):
        raise ValueError(f"replicas={replicas} needs as many shards, there are {len(shards)}")
    if slack < 1:
        raise ValueError(f"slack={slack} leaves blocks without a shard: use 1 or more")
    scores = _scores(table, blocks, shards)
    assigned = np.empty((replicas, blocks), np.uint16)
    taken = np.zeros((blocks, len(shards)), bool)
    for replica in range(replicas):
        cap = math.ceil(slack * blocks * (replica + 1) / len(shards))
        assigned[replica] = _assign_once(scores, taken, cap)
        if (stuck := np.flatnonzero(assigned[replica] == _NOWHERE)).size:
            _swap_in(assigned[: replica + 1], taken, cap, stuck)
    return assigned


_NOWHERE = MAX_SHARDS - 1


def _assign_once(scores: NDArray[np.uint64], taken: NDArray[np.bool_], cap: int) -> NDArray[np.int64]:
    """Give every block one more shard: its best with room, a full shard keeping the blocks that score it highest."""
    choice = np.full(len(scores), _NOWHERE)
    room = cap - taken.sum(axis=0)
    waiting = np.arange(len(scores))
    while waiting.size:
        offers = np.where(taken[waiting] | (room <= 0), 0, scores[waiting])  # a score is never 0
        best = offers.argmax(axis=1)
        score = offers[np.arange(len(waiting)), best]
        accepted = (score > 0) & (_rank_in_group(best, score) < room[best])
        blocks, shards = waiting[accepted], best[accepted]
        choice[blocks] = shards
        taken[blocks, shards] = True
        room -= np.bincount(shards, minlength=len(room))
        waiting = waiting[~accepted & (score > 0)]
    return choice


def _swap_in(assigned: NDArray[np.uint16], taken: NDArray[np.bool_], cap: int, stuck: NDArray[np.int64]) -> None:
    """Place the few blocks for which only shards that hold them already had room.

    Such a block goes to a full shard, and a block of that one moves to the shard with room. There is always one that
    can: the full shard has more blocks than the other, hence one that the other lacks.
    """
    for block in stuck:
        free = int(np.argmax(taken.sum(axis=0) < cap))
        full = int(np.argmin(taken[block]))
        moving = int(np.argmax(taken[:, full] & ~taken[:, free]))
        replica = int(np.argmax(assigned[:, moving] == full))
        assigned[replica, moving] = free
        assigned[-1, block] = full
        taken[moving, full], taken[moving, free], taken[block, full] = False, True, True


def _rank_in_group(group: NDArray[np.int64], score: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Position of each element among those of its group, highest score first."""
    order = np.lexsort((~score, group))
    starts = np.searchsorted(group[order], np.arange(group.max() + 1))
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - starts[group[order]]
    return rank


def _scores(table: str, blocks: int, shards: Sequence[str]) -> NDArray[np.uint64]:
    """Score of every shard for every block, uint64 [blocks, shards], at least 1."""
    seed = np.uint64(xxhash.xxh64_intdigest(table.encode()))
    block_hash = _mix(np.arange(blocks, dtype=np.uint64) + seed)
    shard_hash = np.array([xxhash.xxh64_intdigest(name.encode()) for name in shards], np.uint64)
    return np.maximum(_mix(block_hash[:, None] ^ shard_hash), 1)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every input bit flips half of the output bits."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _check_names(shards: Sequence[str]) -> None:
    if not shards:
        raise ValueError("a placement needs at least one shard")
    if len(set(shards)) != len(shards):
        raise ValueError(f"shard names must differ, got {list(shards)}")
    if len(shards) >= MAX_SHARDS:
        raise ValueError(f"{len(shards)} shards are too many: at most {MAX_SHARDS - 1}")
