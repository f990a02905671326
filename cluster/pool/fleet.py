"""What a memory pool needs of the system that runs its shards' processes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from cluster.pool.policies.plan import Goal, Whereabouts


class Fleet(Protocol):
    """The processes of a pool's shards, and what they remember for a pool that has to start again.

    A pool calls `stop` on threads of its own, and everything else on one thread. Only `stop` and `recover` may take
    seconds.
    """

    def start(self, shard: str, node: str | None = None) -> None:
        """Start a shard's process, empty: on this node if it has room, otherwise and by default on any node.

        A process that ends by itself is started again by the fleet, as soon as a node has room for it.
        """

    def running(self) -> Collection[str]:
        """The shards that were started and not stopped, whether their processes run already or not."""

    def locate(self, shard: str) -> Whereabouts | None:
        """Where a shard can be reached; None while it is starting, restarting, or not running.

        Raises:
            OSError: the shard cannot start.
            ValueError: the shard cannot start.
        """

    def restart(self, shard: str) -> None:
        """End a shard's process; the fleet starts it again, empty and maybe elsewhere."""

    def stop(self, shard: str) -> None:
        """End a shard for good, once it has answered its pending requests."""

    def nodes_with_room(self) -> Collection[str]:
        """The nodes that one more shard may be started on now."""

    def save_goal(self, goal: Goal) -> None:
        """Have every shard remember what the pool should be."""

    def recover(self) -> tuple[Goal | None, list[Whereabouts]]:
        """Find the shards that an earlier process of the pool started: the goal saved last, and where they are."""
