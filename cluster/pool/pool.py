"""The memory pool: runs the shards of a snapshot, and fills, heals, scales and spreads them while they serve."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from cluster.pool.config import PoolConfig
from cluster.pool.decide import decide, is_at_rest, problem, recover
from cluster.pool.fleet import Fleet
from cluster.pool.mailbox import Mailbox, stopping
from cluster.pool.policies.autoscale import Autoscaler, Tuner
from cluster.pool.policies.node_spread import Spreader
from cluster.pool.policies.plan import PoolPlan, Shape
from cluster.pool.report import PoolDescription, ScaleReport
from cluster.pool.state import (
    AbandonReshape,
    Action,
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
from cluster.pool.watch import ShardWatch
from memory_service.control.cancellation import Cancellation
from memory_service.control.each_shard import describing, each_shard
from memory_service.control.reshape import reshape, retire
from memory_service.errors import MemoryServiceError
from memory_service.placement.placement import Placement, ShardAddress
from memory_service.snapshots.origin import Origin

_log = logging.getLogger(__name__)


class MemoryPool:
    """The shards of one snapshot, for `ray.remote(MemoryPool)` or any other fleet of processes.

    A controller: one thread observes the shards, decides what to do (`decide`, a pure function) and does it, round by
    round. What takes long runs on a thread of its own, and its end is part of a later observation. Calls from outside
    and ends of actions reach the controller through its mailbox, so only its thread changes its state.
    """

    def __init__(self, fleet: Fleet, origin: Origin, shape: Shape, config: PoolConfig | None = None) -> None:
        self._fleet = fleet
        self._origin = origin
        self._config = config or PoolConfig()
        self._watch = ShardWatch(fleet, self._config.probe_s)
        self._state = self._recover(_new_state(origin, shape, self._config))
        self._serving: tuple[str | None, Exception | None] = None, None
        self._mailbox = Mailbox()
        # What follows belongs to the controller's thread.
        self._running = True
        self._numbers = itertools.count()
        self._scaling: dict[int, Future[ScaleReport]] = {}
        self._describing: list[Future[PoolDescription]] = []
        self._requests: list[ScaleRequest] = []
        self._done: list[Done] = []
        self._background: dict[Action, threading.Thread] = {}
        self._cancellation = Cancellation()
        self._failures: list[Exception] = []
        self._read_load_at = 0.0
        self._warned = ""
        self._thread = threading.Thread(target=self._run, name="memory-pool", daemon=True)
        self._thread.start()

    def address(self) -> str | None:
        """Return host:port of a shard, at once, if every block is on a shard that answers; otherwise None.

        Raises:
            MemoryServiceError: what keeps the pool from serving, where waiting will not mend it.
            OSError: the same, for a shard that cannot start.
            ValueError: the same, for a shard that cannot start.
        """
        address, failure = self._serving
        if address is None and failure is not None:
            raise failure.with_traceback(None)
        return address

    def describe(self) -> PoolDescription:
        """Observe the pool once more, and report shape, placement, nodes and counters.

        Raises:
            ShardUnavailable: the pool is being stopped.
        """
        return self._mailbox.ask(self._describing.append)

    def scale(self, shards: int | None = None, replicas: int | Mapping[str, int] | None = None) -> ScaleReport:
        """Go over to other numbers of shards and replicas, and wait until blocks, clients and processes have moved.

        Lookups go on. Calls are served one at a time, in turn. After an error the pool goes back to what it was.

        Args:
            shards: how many shards; None for as many as now.
            replicas: how many shards hold each block, for all tables or by table; None for as many as now.

        Raises:
            ValueError: a number is out of range.
            ShardUnavailable: a new shard does not start, or the pool is being stopped.
            MemoryServiceError: a block cannot be had, for example because the snapshot is damaged.
        """
        return self._mailbox.ask(lambda answer: self._request(answer, shards, replicas))

    def close(self) -> None:
        """End the controller and leave the shards alone."""
        self._mailbox.close(self._stop)
        self._thread.join()
        self._cancellation.cancel()
        self._watch.close()

    def shutdown(self) -> None:
        """End the controller; let the shards answer their pending requests, and end them."""
        self.close()
        with ThreadPoolExecutor() as threads:
            list(threads.map(self._fleet.stop, self._fleet.running()))
        for thread in self._background.values():
            thread.join()

    def _request(
        self, answer: Future[ScaleReport], shards: int | None, replicas: int | Mapping[str, int] | None
    ) -> None:
        request = ScaleRequest(next(self._numbers), shards, replicas)
        self._scaling[request.number] = answer
        self._requests.append(request)

    def _stop(self) -> None:
        self._running = False

    def _run(self) -> None:
        while self._running:
            try:
                self._round()
            except Exception as error:  # Ray may not answer for a moment: the next round may succeed
                self._warn("a round failed", error)
                self._refuse_descriptions(error)
            self._mailbox.read(self._config.check_s)
        self._refuse_descriptions(stopping())
        for answer in self._scaling.values():
            answer.set_exception(stopping())

    def _round(self) -> None:
        seen = self._observe()
        self._state, actions = decide(self._state, seen, self._config)
        self._requests, self._done, self._failures = [], [], []
        self._publish(seen)
        for action in actions:
            try:
                self._act(action)
            except Exception as error:
                self._warn(f"{type(action).__name__} failed", error)
                self._failures.append(error)
                self._done.append(Done(action, error))

    def _observe(self) -> Observation:
        counts_blocks = self._state.tuner is not None and time.monotonic() >= self._read_load_at
        shards = self._watch.look(self._state.plan.names, counts_blocks)
        if counts_blocks:
            self._read_load_at = shards.now + self._config.load_s
        return Observation(
            shards.now,
            shards.up,
            shards.missing_since,
            shards.silent_since,
            (*shards.failures, *self._failures),
            running=frozenset(self._fleet.running()),
            stopping=frozenset(action.shard for action in self._background if isinstance(action, StopShard)),
            nodes_with_room=frozenset(self._fleet.nodes_with_room()),
            counts_blocks=counts_blocks,
            requests=tuple(self._requests),
            done=tuple(self._done),
        )

    def _publish(self, seen: Observation) -> None:
        """Let callers know what is the case now."""
        state = self._state
        serving = state.plan.serving(seen.up)
        self._serving = serving[0].address if serving else None, problem(state, seen, self._config)
        stats = {where.shard: counted for where, counted in seen.up.items()}
        at_rest = is_at_rest(state, seen, self._config)
        for answer in self._describing:
            answer.set_result(PoolDescription(state.plan.wanted, state.plan.placement, stats, seen.nodes, at_rest))
        self._describing.clear()

    def _act(self, action: Action) -> None:
        match action:
            case StartShard(shard, node):
                self._fleet.start(shard, node)
            case RestartShard(shard):
                _log.warning("memory pool: %s does not answer: restarting it", shard)
                self._watch.forget(shard)
                self._fleet.restart(shard)
            case StopShard(shard):
                self._in_background(action, lambda: self._fleet.stop(shard))
            case Reshape():
                self._cancellation = cancellation = Cancellation()
                self._in_background(action, lambda: self._reshape(action, cancellation))
            case AbandonReshape():
                self._cancellation.cancel()
            case Retire(placement):
                self._in_background(action, lambda: _retire(placement))
            case SaveGoal(goal):
                self._fleet.save_goal(goal)
            case Conclude(request, result):
                self._conclude(request, result)

    def _reshape(self, action: Reshape, cancellation: Cancellation) -> None:
        if action.retire and action.current is not None:
            _retire(action.current)
        reshape(action.current, action.target, self._origin.present_uri(), cancellation=cancellation)

    def _conclude(self, request: int | None, result: ScaleReport | Exception) -> None:
        said = result.to_text() if isinstance(result, ScaleReport) else f"the shape stays as it was: {result}"
        _log.info("memory pool: %s", said)
        if request is None:
            return
        answer = self._scaling.pop(request)
        if isinstance(result, ScaleReport):
            answer.set_result(result)
        else:
            answer.set_exception(result)

    def _in_background(self, action: Action, work: Callable[[], None]) -> None:
        """Run what takes long on a thread of its own; its end is observed by a later round."""

        def run() -> None:
            error: Exception | None = None
            try:
                work()
            except Exception as failure:
                _log.warning("memory pool: %s", failure)
                error = failure
            self._mailbox.post(lambda: self._note(Done(action, error)))

        thread = threading.Thread(target=run, name=type(action).__name__, daemon=True)
        thread.start()
        self._background[action] = thread

    def _refuse_descriptions(self, error: Exception) -> None:
        for answer in self._describing:
            answer.set_exception(error)
        self._describing.clear()

    def _warn(self, what: str, error: Exception) -> None:
        """Log an error once, however many rounds in a row meet it."""
        warning = f"memory pool: {what}: {type(error).__name__}: {error}"
        if warning != self._warned:
            _log.warning(warning)
        self._warned = warning

    def _note(self, done: Done) -> None:
        del self._background[done.action]
        self._done.append(done)

    def _recover(self, state: PoolState) -> PoolState:
        """Go on from the goal and the placements of the shards that an earlier process of this pool started."""
        goal, found = self._fleet.recover()
        addresses = [ShardAddress(where.shard, where.address) for where in found]
        answers = each_shard(addresses, describing(self._config.probe_s))
        placements = [None if isinstance(answer, MemoryServiceError) else answer.placement for answer in answers]
        return recover(state, goal, dict(zip(found, placements, strict=True)), time.monotonic())


def _new_state(origin: Origin, shape: Shape, config: PoolConfig) -> PoolState:
    scale = config.autoscale
    tuner = Tuner(origin.specs, Autoscaler(scale, shape.bytes_of(origin.specs))) if scale is not None else None
    return PoolState(PoolPlan(origin.specs, shape), Spreader(config.spread_s), tuner)


def _retire(placement: Placement) -> None:
    """Retire older placements. A shard that cannot be reached has died, and its old placements with it."""
    try:
        retire(placement)
    except MemoryServiceError as error:
        _log.warning("memory pool: %s", error)
