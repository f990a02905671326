"""A fleet of shards in the test's own process: real servers, no Ray."""

from __future__ import annotations

import threading
from contextlib import suppress

from cluster.pool.policies.plan import Whereabouts
from memory_service.server.server import ShardServer
from memory_service.shard.shard import Shard


class InProcessFleet:
    """Shards that can be killed, after which they come back as soon as there is room, and the goals that were saved.

    Nodes are only names: `node` is where a shard starts by default.
    """

    def __init__(self):
        self.servers = {}
        self.node = ""
        self.with_room = set()
        self.nodes = {}
        self.started = set()
        self.no_room = set()
        self.restarted = []
        self.goals = []
        self._lock = threading.Lock()

    def start(self, shard, node=None):
        with self._lock:
            self.started.add(shard)
            self.nodes.setdefault(shard, node or self.node)
            if shard not in self.servers and shard not in self.no_room:
                self.servers[shard] = ShardServer(Shard(shard)).start()

    def running(self):
        return sorted(self.started)

    def locate(self, shard):
        if shard in self.started:
            self.start(shard)  # there may be room for it by now
        with self._lock:
            server = self.servers.get(shard)
        return server and Whereabouts(shard, server.address, server.incarnation, self.nodes[shard])

    def restart(self, shard):
        self.restarted.append(shard)
        self.kill(shard)

    def stop(self, shard):
        self._end(shard)
        self.started.discard(shard)

    def nodes_with_room(self):
        return set(self.with_room)

    def save_goal(self, goal):
        self.goals.append(goal)

    def recover(self):
        return (self.goals[-1] if self.goals else None), [self.locate(shard) for shard in list(self.servers)]

    def kill(self, shard, for_good=False):
        """End a server; another one takes its place, as Ray would see to."""
        if for_good:
            self.no_room.add(shard)
        self._end(shard)
        if shard in self.started:
            self.start(shard)

    def held(self, shard):
        """Blocks of all tables that a shard holds."""
        return sum(len(table.blocks) for table in self.servers[shard].shard.tables.values())

    def close(self):
        for shard in list(self.servers):
            with suppress(KeyError):
                self.stop(shard)

    def _end(self, shard):
        with self._lock:
            server = self.servers.pop(shard, None)
        if server is not None:
            server.stop(0.2)
