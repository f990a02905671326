"""Assignment of the blocks of a table to shards: a first assignment, and the next one with as few moves as possible.

Blocks are assigned by rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit rates",
1998): every shard has a score for every block, and the highest score wins, so adding a shard moves only the blocks that
it wins. A cap on each shard's load, with overflow to the shard with the next-best score, follows Mirrokni, Thorup and
Zadimoghaddam, "Consistent hashing with bounded loads", 2016. The scores of neighbouring blocks are independent, so
every shard gets a mix of columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from memory_service.placement.failure_domains import present, repeated, separate, shares
from memory_service.tables.spec import OPTIMIZER_SUFFIX

MAX_SHARDS = 1 << 16
UNASSIGNED = MAX_SHARDS - 1
"""Marks, in an assignment, the missing replicas of a block that has fewer than the block with the most."""


def assign_blocks(
    table: str, blocks: int, shards: Sequence[str], replicas: int = 1, slack: float = 1.05
) -> NDArray[np.uint16]:
    """Assign the blocks of a table to shards; the result depends on the names only.

    No shard gets more than ceil(slack * blocks * replicas / shards) blocks, and the replicas of a block are on distinct
    shards.

    Args:
        table: name of the table.
        blocks: number of its blocks.
        shards: names of the shards.
        replicas: replicas of every block.
        slack: largest load of a shard as a multiple of its fair share, at least 1.

    Returns:
        uint16 [replicas, blocks], indices into `shards`.

    Raises:
        ValueError: there are fewer shards than replicas, names repeat, or `slack` is below 1.
    """
    check_names(shards)
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
        if (stuck := np.flatnonzero(assigned[replica] == UNASSIGNED)).size:
            _swap_in(assigned[: replica + 1], taken, cap, stuck)
    return assigned


def reassign_blocks(
    table: str,
    held: NDArray[np.bool_],
    wanted: NDArray[np.integer],
    shards: Sequence[str],
    domains: NDArray[np.int64] | None = None,
    slack: float = 1.05,
) -> NDArray[np.uint16]:
    """Assign the blocks of a table to a new set of shards, with as few new replicas as possible.

    A shard that holds nothing yet gets at least 1/slack of its share, and no shard gets more than slack times its
    share. Shares are equal, unless the failure domains are too unequal for that.

    Args:
        table: name of the table.
        held: replicas that exist already, bool [blocks, shards].
        wanted: number of replicas each block should have, [blocks].
        shards: names of the shards.
        domains: failure domain of each shard, [shards]; if None, every shard is a domain of its own. Replicas of a
            block are put into different domains as far as possible.
        slack: largest load of a shard as a multiple of its share, at least 1.

    Returns:
        uint16 [largest number of replicas, blocks], indices into `shards`. UNASSIGNED marks missing replicas of blocks
        that have fewer.

    Raises:
        ValueError: there are fewer shards than replicas, or names repeat.
    """
    check_names(shards)
    if not 1 <= wanted.min() <= wanted.max() <= len(shards):
        raise ValueError(f"replicas from {wanted.min()} to {wanted.max()} need 1 to as many shards: {len(shards)}")
    domains = np.arange(len(shards)) if domains is None else domains
    scores = _scores(table, len(wanted), shards)
    taken = held.copy()
    _drop_surplus(taken, _worth(scores, repeated(taken, scores, domains)), wanted)
    total = int(wanted.sum())
    share = shares(domains, len(wanted), total)
    most = np.ceil(slack * total * share / len(shards)).astype(np.int64)
    least = np.where(held.any(axis=0), 0, (total * share / len(shards) / slack).astype(np.int64))
    goal = _goal(taken.sum(axis=0), total, least, most)
    _shed(taken, _worth(scores, repeated(taken, scores, domains)), goal)
    while (missing := wanted - taken.sum(axis=1)).any():
        offers = _worth(scores, present(taken, domains)[:, domains] > 0)
        choice = _assign_once(np.where(missing[:, None] > 0, offers, 0), taken, goal)
        if (stuck := np.flatnonzero((missing > 0) & (choice == UNASSIGNED))).size:
            _squeeze_in(taken, most, stuck)
    separate(taken, domains, most)
    return _in_order(taken, scores)


def _worth(scores: NDArray[np.uint64], doubtful: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Scores, with those of the doubtful replicas lowered below all others."""
    return (scores >> np.uint64(1)) | np.uint64(1) | ((~doubtful).astype(np.uint64) << np.uint64(63))


def _drop_surplus(taken: NDArray[np.bool_], scores: NDArray[np.uint64], wanted: NDArray[np.integer]) -> None:
    """Keep only as many replicas of each block as are wanted, those with the best scores."""
    best_first = np.argsort(np.where(taken, ~scores, np.iinfo(np.uint64).max), axis=1)
    rank = np.argsort(best_first, axis=1)
    taken &= rank < wanted[:, None]


def _goal(load: NDArray[np.int64], total: int, least: NDArray[np.int64], most: NDArray[np.int64]) -> NDArray[np.int64]:
    """Target number of blocks per shard, `total` in sum: as close to the current load as `least` and `most` allow."""
    goal = np.clip(load, least, most)
    while (gap := total - int(goal.sum())) != 0:
        sign = 1 if gap > 0 else -1
        free = np.flatnonzero(goal < most if gap > 0 else goal > least)
        level = sign * goal[free]
        lowest = free[level == level.min()]
        higher = level[level > level.min()]
        bound = most[lowest] - goal[lowest] if gap > 0 else goal[lowest] - least[lowest]
        step = min(
            int(bound.min()), int(higher.min() - level.min()) if higher.size else abs(gap), abs(gap) // len(lowest)
        )
        if step:
            goal[lowest] += sign * step
        else:
            goal[lowest[: abs(gap)]] += sign
    return goal


def _shed(taken: NDArray[np.bool_], scores: NDArray[np.uint64], goal: NDArray[np.int64]) -> None:
    """Remove, from every shard above its goal, the blocks with the lowest scores for it.

    Blocks that have lost a replica already come last, because a block that lost two could not place both on one shard.
    """
    lost = np.zeros(len(taken), np.int64)
    for shard in np.flatnonzero(taken.sum(axis=0) > goal):
        mine = np.flatnonzero(taken[:, shard])
        order = np.lexsort((scores[mine, shard], lost[mine]))
        leaving = mine[order[: len(mine) - goal[shard]]]
        taken[leaving, shard] = False
        lost[leaving] += 1


def _squeeze_in(taken: NDArray[np.bool_], most: NDArray[np.int64], stuck: NDArray[np.int64]) -> None:
    """Place the blocks for which every shard below its goal already holds a replica.

    Such a block goes to the shard with the most room among those without it. If that shard is full, a block of it moves
    to a shard that is not: with equal shares the full shard has more blocks, hence a block that the other lacks. If
    shares differ there may be no such block; the shard then exceeds its limit by one block.
    """
    for block in stuck:
        room = most - taken.sum(axis=0)
        to = int(np.argmax(np.where(taken[block], np.iinfo(np.int64).min, room)))
        if room[to] <= 0:
            free = int(np.argmax(room))
            moving = np.flatnonzero(taken[:, to] & ~taken[:, free])[:1]
            taken[moving, to], taken[moving, free] = False, True
        taken[block, to] = True


def _in_order(taken: NDArray[np.bool_], scores: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """Order the replicas of each block, uint16 [replicas, blocks], so that first replicas are spread evenly."""
    blocks, shards = taken.shape
    others = ~taken
    first = _assign_once(scores, others, math.ceil(blocks / shards) + others.sum(axis=0))
    rank = np.where(taken, scores, 0)
    chosen = np.flatnonzero(first != UNASSIGNED)
    rank[chosen, first[chosen]] = np.iinfo(np.uint64).max
    counts = taken.sum(axis=1)
    ordered = np.argsort(~rank, axis=1)[:, : counts.max()].T.astype(np.uint16)
    ordered[np.arange(len(ordered))[:, None] >= counts] = UNASSIGNED
    return ordered


def _assign_once(
    scores: NDArray[np.uint64], taken: NDArray[np.bool_], cap: int | NDArray[np.int64]
) -> NDArray[np.int64]:
    """Assign one more shard to every block: the shard with its best score that has room.

    If too many blocks prefer a shard, it keeps those with the highest scores.
    """
    choice = np.full(len(scores), UNASSIGNED)
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
    """Place the blocks for which every shard with room already holds a replica.

    Such a block goes to a full shard, and a block of the full shard moves to the shard with room. That is always
    possible: the full shard has more blocks than the other, hence a block that the other lacks.
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
    """Rank of each element within its group, the highest score first."""
    order = np.lexsort((~score, group))
    starts = np.searchsorted(group[order], np.arange(group.max() + 1))
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - starts[group[order]]
    return rank


def _scores(table: str, blocks: int, shards: Sequence[str]) -> NDArray[np.uint64]:
    """Score of every shard for every block, uint64 [blocks, shards], at least 1; the same for a table's optimizer."""
    seed = np.uint64(xxhash.xxh64_intdigest(table.removesuffix(OPTIMIZER_SUFFIX).encode()))
    block_hash = _mix(np.arange(blocks, dtype=np.uint64) + seed)
    shard_hash = np.array([xxhash.xxh64_intdigest(name.encode()) for name in shards], np.uint64)
    return np.maximum(_mix(block_hash[:, None] ^ shard_hash), 1)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every input bit flips half of the output bits."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def check_names(shards: Sequence[str]) -> None:
    """Check the names of the shards of a placement.

    Raises:
        ValueError: there is no shard, there are too many, or names repeat.
    """
    if not shards:
        raise ValueError("a placement needs at least one shard")
    if len(set(shards)) != len(shards):
        raise ValueError(f"shard names must differ, got {list(shards)}")
    if len(shards) >= MAX_SHARDS:
        raise ValueError(f"{len(shards)} shards are too many: at most {MAX_SHARDS - 1}")
