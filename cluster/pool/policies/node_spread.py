"""Which shard of a pool should move to another node, so that no node's loss is felt. Knows neither Ray nor the clock.

Ray restarts the shards of a lost node on the nodes that are left, and moves none to a node that joins. A pool cannot
do without a node that has more than its share of the shards: past a certain part of them (see `failure_domains`),
some blocks have all of their replicas there. Moving a shard from the node with the most shards to a node with at least
two fewer makes the numbers more even each time, so the moves come to an end. In the end no two numbers differ by more
than one, as far as the nodes have room, and no placement spreads the replicas more evenly.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

LEAST_GAIN = 2
"""How many more shards one node must have than another for a move between them to gain anything."""


@dataclass(frozen=True)
class Move:
    """A shard that should be on another node."""

    shard: str
    node: str
    """The node it should be on."""


def next_move(nodes: Mapping[str, str], with_room: Collection[str]) -> Move | None:
    """Return the move that brings a pool nearest to an even spread; None if none does.

    Args:
        nodes: the node of each shard; a shard whose node is unknown ("") stays.
        with_room: the nodes that one more shard may be started on.
    """
    counts = Counter(node for node in nodes.values() if node)
    if not counts or not with_room:
        return None
    crowded = max(sorted(counts), key=counts.__getitem__)
    target = min(sorted(with_room), key=counts.__getitem__)
    if counts[crowded] - counts[target] < LEAST_GAIN:
        return None
    return Move(max(shard for shard, node in nodes.items() if node == crowded), target)


@dataclass(frozen=True)
class Spreader:
    """Lets some time pass between two moves, and doubles it after each move that changed nothing."""

    least_rest_s: float
    """Seconds between two moves."""
    most_rest_s: float = 3600.0
    """Most seconds between two moves, after many in vain."""
    rest_s: float = 0.0
    """Seconds to wait after the last move."""
    moved: float = -math.inf
    """Time of the last move."""
    counts: Mapping[str, int] | None = None
    """Shards by node before the last move."""

    def decide(self, now: float, nodes: Mapping[str, str], with_room: Collection[str]) -> tuple[Spreader, Move | None]:
        """Return the spreader after this decision, and the move to make now, if any.

        Args:
            now: seconds of any clock.
            nodes: see `next_move`.
            with_room: see `next_move`.
        """
        if now - self.moved < self.rest_s:
            return self, None
        move = next_move(nodes, with_room)
        if move is None:
            return self, None
        counts = Counter(nodes.values())
        rest_s = min(2 * self.rest_s, self.most_rest_s) if counts == self.counts else self.least_rest_s
        return replace(self, rest_s=rest_s, moved=now, counts=counts), move
