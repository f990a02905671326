"""A world of plain data for the decisions of a pool: processes, nodes, reshapes and time move as a test says."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from cluster.pool.config import PoolConfig
from cluster.pool.decide import decide, is_at_rest, recover
from cluster.pool.policies.node_spread import Spreader
from cluster.pool.policies.plan import Goal, PoolPlan, Shape, Whereabouts
from cluster.pool.state import (
    AbandonReshape,
    Conclude,
    Done,
    Observation,
    PoolState,
    Reshape,
    RestartShard,
    Retire,
    SaveGoal,
    ScaleRequest,
    StartShard,
    StopShard,
)
from memory_service import RowFormat, ShardUnavailable, TableSpec
from memory_service.control.cancellation import Cancelled
from memory_service.protocol.reports import ShardStats

SPEC = TableSpec(
    name="engram.1",
    layer=1,
    column_rows=(300, 300),
    max_ngram=3,
    heads=1,
    multipliers=(7, 11, 13),
    pad_id=2,
    token_map_sha256="ab" * 32,
    dim=8,
    row_format=RowFormat.BF16,
    block_rows=64,
)
CONFIG = PoolConfig(check_s=1, probe_s=1, unresponsive_s=3, give_up_s=5, start_s=8, grace_s=2, spread_s=2)


def new_state(shape):
    return PoolState(PoolPlan((SPEC,), shape), Spreader(CONFIG.spread_s))


@dataclass
class World:
    """Processes of shards, and a pool that looks at them once a second. What must always hold is asserted each time."""

    shape: Shape
    state: PoolState
    now: float = 0.0
    homes: tuple = ("a", "b", "c")
    """Nodes with room."""
    running: dict = field(default_factory=dict)
    """Whereabouts of the present life of each running shard."""
    lives: int = 0
    """How many processes there have been."""
    down: frozenset = frozenset()
    """Running shards that have no process, for want of room."""
    hung: frozenset = frozenset()
    """Running shards whose process does not answer."""
    missing_since: dict = field(default_factory=dict)
    silent_since: dict = field(default_factory=dict)
    active: dict = field(default_factory=dict)
    """Placement that each process has activated."""
    saved: Goal | None = None
    work: Reshape | Retire | None = None
    """What is under way in the background."""
    done: tuple = ()
    asked: tuple = ()
    """All requests so far."""
    posted: tuple = ()
    """Requests that the pool has not seen yet."""
    answers: dict = field(default_factory=dict)
    """Results by number of the request."""
    seen: Observation | None = None
    actions: tuple = ()
    """What the pool did in its last round."""

    @classmethod
    def of(cls, *shape):
        return cls(Shape(*shape), new_state(Shape(*shape)))

    def copy(self):
        fresh = {name: dict(value) for name, value in vars(self).items() if isinstance(value, dict)}
        return replace(self, **fresh)

    # What a test lets happen.

    def scale(self, shards=None, replicas=None):
        request = ScaleRequest(len(self.asked), shards, replicas)
        self.asked, self.posted = (*self.asked, request), (*self.posted, request)

    def kill(self, shard):
        """End a process; another one takes its place, empty, if there is room."""
        if shard in self.running:
            self._begin_life(shard, self.running[shard].node)

    def evict(self, shard):
        """End a process, and leave no room for another one."""
        if shard in self.running:
            self.kill(shard)
            self.down |= {shard}

    def make_room(self):
        self.down = frozenset()

    def hang(self, shard):
        if shard in self.running:
            self.hung |= {shard}

    def lose_node(self, node):
        """Take a node away; its shards come back on the others."""
        self.homes = tuple(home for home in self.homes if home != node)
        for shard, where in list(self.running.items()):
            if where.node == node:
                self._begin_life(shard, self._emptiest())

    def add_node(self, node):
        self.homes = (*self.homes, node)

    def finish(self, error=None, activated=()):
        """End the work under way: well if its shards live; with an error, those named have activated the placement."""
        work, self.work = self.work, None
        if work is None:
            return
        if isinstance(work, Reshape):
            answering = {(where.shard, where.address): where for where in self._answering()}
            targets = [answering.get((shard.shard, shard.address)) for shard in work.target.shards]
            if error is None and None in targets:
                error = ShardUnavailable("a shard is gone")
            for where in filter(None, targets):
                if error is None or where.shard in activated:
                    self.active[where] = work.target
        self.done = (*self.done, Done(work, error))

    def restart_pool(self):
        """The pool's process ends and another one begins; callers that wait for an answer ask again."""
        self.work, self.done, self.seen = None, (), None
        self.missing_since, self.silent_since = {}, {}
        serving = {where: self.active.get(where) for where in self._answering()}
        self.state = recover(new_state(self.shape), self.saved, serving, self.now)
        self.posted = tuple(request for request in self.asked if request.number not in self.answers)

    def look(self, rounds=1):
        """Let the pool observe, decide and act, once a second."""
        for _ in range(rounds):
            self.now += 1
            self.seen = self._observe()
            self.done, self.posted = (), ()
            self.state, actions = decide(self.state, self.seen, CONFIG)
            self.actions = tuple(actions)
            for action in actions:
                self._act(action)
            self._check()
        return self

    def rest(self, rounds=80):
        """Let time pass in which nothing happens, but what is under way ends."""
        for _ in range(rounds):
            self.finish()
            self.look()
            if self.at_rest:
                return self
        return self

    @property
    def at_rest(self):
        return is_at_rest(self.state, self.seen, CONFIG)

    @property
    def serving(self):
        return [where.shard for where in self.state.plan.serving(self.seen.up)]

    # What the pool sees and does.

    def _observe(self):
        names = self.state.plan.names
        up = {where: ShardStats() for where in self._answering() if where.shard in names}
        answered = {where.shard for where in up}
        self.missing_since = {name: self.missing_since.get(name, self.now) for name in names if name not in answered}
        silent = self.hung.intersection(names) - self.down
        self.silent_since = {name: self.silent_since.get(name, self.now - 1) for name in silent}
        return Observation(
            self.now,
            up,
            dict(self.missing_since),
            dict(self.silent_since),
            running=frozenset(self.running),
            nodes_with_room=frozenset(self.homes),
            requests=self.posted,
            done=self.done,
        )

    def _act(self, action):
        match action:
            case StartShard(shard, node):
                assert shard not in self.running
                self._begin_life(shard, node if node in self.homes else self._emptiest())
            case RestartShard(shard):
                self.kill(shard)
            case StopShard(shard):
                self._check_unneeded(shard)
                del self.running[shard]
                self.down, self.hung = self.down - {shard}, self.hung - {shard}
            case Reshape(current, target):
                assert self.work is None, "at most one reshape or retirement is under way"
                assert {(shard.shard, shard.address) for shard in target.shards} <= {
                    (where.shard, where.address) for where in self.seen.up
                }
                assert current is None or target.epoch > current.epoch
                self.work = action
            case Retire():
                assert self.work is None, "at most one reshape or retirement is under way"
                self.work = action
            case AbandonReshape():
                self.finish(Cancelled("it cannot succeed"))
            case SaveGoal(goal):
                self.saved = goal
            case Conclude(None, _):
                pass
            case Conclude(number, result):
                assert number not in self.answers, "a request is answered once"
                self.answers[number] = result

    def _check(self):
        """What holds after every round, whatever happens."""
        plan = self.state.plan
        assert self.saved is None or self.saved == self.state.goal, "a pool that restarts goes on with the same goal"
        assert (plan.target is None) == (not isinstance(self.work, Reshape) and not self._has_ended(Reshape))
        if self.at_rest:
            assert len(self.serving) == len(plan.served.processes) == plan.wanted.shards, (
                "every block has all its replicas"
            )
            assert set(self.running) == set(plan.wanted.names), "no process is left over"
            assert self._uneven() <= 1, "the shards are spread"

    def _has_ended(self, kind):
        return any(isinstance(done.action, kind) for done in self.done)

    def _check_unneeded(self, shard):
        plan = self.state.plan
        assert shard not in plan.wanted.names
        assert shard not in plan.served_names, "no block loses a home"
        assert plan.target is None, "no shard is stopped while blocks move"

    def _answering(self):
        return [where for shard, where in self.running.items() if shard not in self.down | self.hung]

    def _begin_life(self, shard, node):
        self.lives += 1
        self.running[shard] = Whereabouts(shard, f"host:{self.lives}", f"life {self.lives}", node)
        self.hung -= {shard}

    def _emptiest(self):
        counts = Counter(where.node for where in self.running.values())
        return min(self.homes, key=lambda home: (counts[home], home))

    def _uneven(self):
        counts = Counter(where.node for where in self.running.values())
        return max(counts[home] for home in self.homes) - min(counts[home] for home in self.homes)
