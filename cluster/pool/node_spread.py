"""Which shard of a pool should move to another node, so that no node's loss is felt. Knows neither Ray nor the clock.

Ray starts the shards of a lost node again on the nodes that are left, and moves none to a node that joins. A node that
has more than its share of the shards cannot be done without: past a certain part of them (see `failure_domains`)
some blocks have all of their replicas there. Moving a shard from the node with the most to one with at least two fewer
makes the numbers more even each time, so the moves come to an end, and in the end no two numbers differ by more than
one as far as the nodes have room: more even, and with that farther apart, replicas cannot be.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

LEAST_GAIN = 2
"""Shards that one node must have more than another for a move between them to gain anything."""


@dataclass(frozen=True)
class Move:
    """A shard that should be on another node."""

    shard: str
    node: str
    """Where it should be."""


def next_move(nodes: Mapping[str, str], roomy: Collection[str]) -> Move | None:
    """The move that brings a pool nearest to an even spread; None if none does.

    Args:
        nodes: the node of each shard; "" if nobody knows, and then it stays.
        roomy: the nodes that one more shard may be started on.
    """
    counts = Counter(node for node in nodes.values() if node)
    if not counts or not roomy:
        return None
    crowded = max(sorted(counts), key=counts.__getitem__)
    target = min(sorted(roomy), key=counts.__getitem__)
    if counts[crowded] - counts[target] < LEAST_GAIN:
        return None
    return Move(max(shard for shard, node in nodes.items() if node == crowded), target)


class Spreader:
    """Lets some time pass between two moves, and ever more if they lead nowhere."""

    def __init__(self, rest_s: float, most_rest_s: float = 3600.0) -> None:
        self._least_s = rest_s
        self._most_s = most_rest_s
        self._rest_s = rest_s
        self._moved = -math.inf
        self._nodes: Mapping[str, int] | None = None

    def decide(self, now: float, nodes: Mapping[str, str], roomy: Collection[str]) -> Move | None:
        """Return the move to make now, if any; see `next_move`. `now` in seconds of any clock."""
        if now - self._moved < self._rest_s:
            return None
        move = next_move(nodes, roomy)
        if move is not None:
            counts = Counter(nodes.values())
            in_vain = counts == self._nodes
            self._rest_s = min(2 * self._rest_s, self._most_s) if in_vain else self._least_s
            self._moved, self._nodes = now, counts
        return move
