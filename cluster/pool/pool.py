"""The memory pool: keeps as many shards as are wished for, fills them, and mends what breaks while the others serve."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from cluster.pool.autoscale import AutoscaleConfig
from cluster.pool.node_spread import Spreader, next_move
from cluster.pool.plan import PoolPlan, Shape, Whereabouts
from cluster.pool.report import PoolDescription, ScaleReport
from cluster.pool.tuner import PoolTuner
from cluster.pool.watch import Fleet, ShardWatch
from memory_service.control.client import ControlClient
from memory_service.control.reshape import reshape, retire
from memory_service.errors import MemoryServiceError, ShardUnavailable, WrongEpoch
from memory_service.placement.placement import Placement
from memory_service.protocol.reports import ShardStats
from memory_service.server.limits import DoorLimits
from memory_service.snapshots.origin import Origin

_PASSING = (ShardUnavailable, WrongEpoch)  # errors of shards that come and go; the next attempt may do better
_MOST_PATIENT_S = 15.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PoolConfig:
    """How patient a pool is, and whether it chooses its own size."""

    check_s: float = 0.5
    """Between two looks at the shards."""
    probe_s: float = 1.0
    """For a shard to answer such a look."""
    unresponsive_s: float = 10.0
    """A shard that takes connections and does not answer for so long is restarted."""
    give_up_s: float = 30.0
    """The blocks of a shard that has been away for so long go to the others, until it is back."""
    start_s: float = 120.0
    """For a new shard to start."""
    grace_s: float = 2.0
    """For which an older placement is answered after a newer one came into force."""
    spread_s: float = 10.0
    """After a shard moved to another node, before the next one may."""
    autoscale: AutoscaleConfig | None = None
    """Lets the load decide how many shards there are, and which blocks have further replicas."""
    load_s: float = 10.0
    """Over which the load is measured."""
    limits: DoorLimits = field(default_factory=DoorLimits)
    """Limits of the doors of every shard."""


class MemoryPool:
    """The shards of one snapshot, for `ray.remote(MemoryPool)` or any other fleet of processes.

    One thread looks at the shards; another brings what is served to what is wished for: starts shards, has them
    prepare and activate the next placement, retires the last one. Every method but `scale` answers at once.
    """

    def __init__(self, fleet: Fleet, origin: Origin, shape: Shape, config: PoolConfig | None = None) -> None:
        self._fleet = fleet
        self._origin = origin
        self._config = config or PoolConfig()
        self._plan = PoolPlan(origin.specs, shape)
        self._watch = ShardWatch(fleet, self._config.probe_s, self._config.unresponsive_s)
        self._changed = threading.Condition()
        self._scaling = threading.Lock()
        self._stopping = threading.Event()
        self._retire_at: float | None = None
        self._bound_for: dict[str, str] = {}
        self._spreader = Spreader(self._config.spread_s)
        self._failures: dict[str, Exception] = {}
        self._recover()
        works: list[tuple[Callable[[], None], float]] = [
            (self._look, self._config.check_s),
            (self._mend, self._config.check_s),
            (self._spread, self._config.check_s),
        ]
        if self._config.autoscale is not None:
            self._tuner = PoolTuner(self._config.autoscale, origin.specs, shape)
            works.append((self._tune, self._config.load_s))
        self._threads = [threading.Thread(target=self._repeat, args=work, daemon=True) for work in works]
        for thread in self._threads:
            thread.start()

    def address(self) -> str | None:
        """Return host:port of a shard, if every block is on a shard that answers; otherwise None.

        Raises:
            MemoryServiceError, OSError, ValueError: what keeps it from serving, where waiting will not mend it.
        """
        serving = self._plan.serving(self._watch.up)
        if not serving:
            self._raise_failure()
            return None
        return serving[0].address

    def describe(self) -> PoolDescription:
        """Report shape, placement, nodes and counters."""
        stats = {where.shard: counted for where, counted in self._watch.up.items()}
        nodes = {where.shard: where.node for where in self._watch.up}
        at_rest = self._is_at_rest() and next_move(nodes, self._fleet.roomy()) is None
        return PoolDescription(self._plan.shape, self._plan.placement, stats, nodes, at_rest)

    def scale(self, shards: int | None = None, replicas: int | Mapping[str, int] | None = None) -> ScaleReport:
        """Go over to other numbers of shards and replicas, and wait until blocks, clients and processes have moved.

        Lookups go on. One call at a time, others wait for their turn. After an error the pool goes back to what it was.

        Raises:
            ValueError: numbers that cannot be.
            ShardUnavailable: a new shard does not start.
            MemoryServiceError: a block cannot be had, for example because the snapshot is damaged.
        """
        with self._scaling:
            shape = self._plan.shape
            shape = replace(shape, shards=shape.shards if shards is None else shards)
            return self._change(replace(shape, replicas=shape.replicas if replicas is None else replicas))

    def shutdown(self) -> None:
        """Let the shards finish what they are answering, and end them."""
        self._stopping.set()
        self._end_shards()
        for thread in self._threads:
            thread.join()
        self._end_shards()  # one of the threads may just have started another
        self._watch.close()

    def _end_shards(self) -> None:
        with ThreadPoolExecutor() as threads:
            list(threads.map(self._fleet.stop, self._fleet.running()))

    def _change(self, shape: Shape) -> ScaleReport:
        self._wait_until_settled()
        start, old, old_shape = time.monotonic(), self._plan.placement, self._plan.shape
        self._wish(shape)
        try:
            self._wait_until_settled()
        except Exception:
            self._wish(old_shape)
            raise
        new = self._plan.placement
        assert old is not None, "a settled pool serves"
        assert new is not None, "a settled pool serves"
        return ScaleReport.of(old, new, time.monotonic() - start)

    def _wish(self, shape: Shape) -> None:
        with self._changed:
            self._failures.clear()
            self._plan.shape = shape
            self._fleet.note(shape)

    def _wait_until_settled(self) -> None:
        """Wait until what is served is what is wished for, the last placement retired and nobody left over."""
        with self._changed:
            while not self._is_settled():
                if self._stopping.is_set():
                    raise ShardUnavailable("the memory pool is being stopped")
                self._raise_failure()
                self._changed.wait(self._config.check_s)

    def _is_settled(self) -> bool:
        return self._plan.is_reached(self._given_up()) and self._retire_at is None and not self._surplus()

    def _is_at_rest(self) -> bool:
        """Whether nothing is under way, and every shard serves."""
        return self._is_settled() and self._plan.is_whole(self._watch.up)

    def _raise_failure(self) -> None:
        for failure in list(self._failures.values()):
            if not isinstance(failure, _PASSING):
                raise failure
        if late := self._plan.strangers(self._watch.missing(self._config.start_s)):
            raise ShardUnavailable(
                f"{late[0]} did not start within {self._config.start_s:g} s: does a node of the cluster have room for "
                "it? Add memory nodes, or ask for fewer shards",
                shard=late[0],
            )

    def _look(self) -> None:
        self._watch.look(self._plan.names)

    def _mend(self) -> None:
        """Take the next step towards what is wished for."""
        for shard in self._plan.shape.names:
            self._fleet.start(shard, self._bound_for.get(shard))
        target = self._plan.next_placement(self._watch.up, self._given_up())
        if target is not None:
            self._go_to(target)
        elif self._retire_at is not None:
            if time.monotonic() >= self._retire_at:
                self._retire()
        else:
            for shard in self._surplus():
                self._fleet.stop(shard)

    def _go_to(self, target: Placement) -> None:
        if self._retire_at is not None:
            self._retire()
        try:
            reshape(self._plan.placement, target, self._origin.present_uri())
        except BaseException:
            self._plan.failed()
            raise
        self._plan.served()
        self._retire_at = time.monotonic() + self._config.grace_s
        self._fleet.note(self._plan.shape)

    def _retire(self) -> None:
        """End the placements before the one served. A shard that cannot be told has died, and its epochs with it."""
        assert self._plan.placement is not None, "there is one to retire the others for"
        try:
            retire(self._plan.placement)
        except ShardUnavailable as error:
            _log.warning("memory pool: %s", error)
        self._retire_at = None

    def _spread(self) -> None:
        """Move one shard to another node, if one should: a successor there takes over before it leaves."""
        with self._scaling:
            if not self._is_at_rest():
                return
            nodes = {where.shard: where.node for where in self._watch.up}
            move = self._spreader.decide(time.monotonic(), nodes, self._fleet.roomy())
            if move is None:
                return
            shape, successor = self._plan.shape.succeeded(move.shard)
            self._bound_for = {successor: move.node}
            _log.info("memory pool: %s gives way to %s: %s", move.shard, successor, self._change(shape).to_text())

    def _tune(self) -> None:
        """Let the load decide on the number of shards and on replicas of hot blocks."""
        readings = self._read_counters()
        with self._scaling:
            placement, shape = self._plan.placement, self._plan.shape
            if placement is None or not self._is_settled():
                return
            wanted = self._tuner.decide(time.monotonic(), readings, shape, placement)
            if wanted != shape:
                _log.info("memory pool: %s", self._change(wanted).to_text())

    def _read_counters(self) -> dict[Whereabouts, ShardStats]:
        """Counters by block as well, of the shards that answer."""
        readings = {}
        for where in self._watch.up:
            with ControlClient(where.address, where.shard) as control:
                readings[where] = control.stats(blocks=True)
        return readings

    def _given_up(self) -> list[str]:
        return self._watch.missing(self._config.give_up_s)

    def _surplus(self) -> list[str]:
        return [shard for shard in self._fleet.running() if shard not in self._plan.names]

    def _recover(self) -> None:
        """Find the shards of an earlier life of this pool, and the newest placement that they serve."""
        recalled = self._fleet.recall()
        if recalled is None:
            return
        self._plan.shape, found = recalled
        placements = [placement for placement in map(self._placement_of, found) if placement is not None]
        if placements:
            newest = max(placements, key=lambda placement: placement.epoch)
            addresses = {(shard.shard, shard.address) for shard in newest.shards}
            self._plan.adopt(newest, [one for one in found if (one.shard, one.address) in addresses])

    def _placement_of(self, one: Whereabouts) -> Placement | None:
        try:
            with ControlClient(one.address, one.shard) as control:
                return control.describe(self._config.probe_s).placement
        except MemoryServiceError:
            return None

    def _repeat(self, work: Callable[[], None], every_s: float) -> None:
        pause = every_s
        while not self._stopping.wait(pause):
            try:
                work()
                self._failures.pop(work.__name__, None)
                pause = every_s
            except Exception as error:
                # Whoever asks for the memory is told as well, if waiting will not mend it.
                _log.warning("memory pool: %s", error)
                self._failures[work.__name__] = error
                pause = max(every_s, min(2 * pause, _MOST_PATIENT_S))
            with self._changed:
                self._changed.notify_all()
