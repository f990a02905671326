"""The memory of a training run: shard actors, filled from a checkpoint at the beginning of each attempt."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from cluster.pool.fleet import Fleet
from cluster.pool.policies.plan import Whereabouts
from memory_service.control.reshape import reshape, retire
from memory_service.errors import ShardUnavailable
from memory_service.learning.optimizers import OptimizerConfig
from memory_service.placement.placement import Placement, ShardAddress
from memory_service.snapshots.snapshot import Snapshot
from memory_service.training.control import Attempt, begin_attempt, end_attempt

_LOOK_S = 0.1
_START_S = 120.0


class TrainingMemory:
    """Keeps the shards of a run, for `ray.remote(TrainingMemory)`; they end with it.

    A shard that has died is started anew by Ray, empty. So every attempt begins with a placement on the shards that are
    there, and with the rows of one checkpoint on all of them.
    """

    def __init__(self, fleet: Fleet, shards: int) -> None:
        self._fleet = fleet
        self._names = [f"shard-{index}" for index in range(shards)]
        self._placement: Placement | None = None
        self._incarnations: Sequence[str] = ()
        self._attempt: Attempt | None = None
        self._failure: str | None = None

    def begin(self, ranks: int, step: int, optimizer: OptimizerConfig | None, snapshot_uri: str) -> None:
        """Fill the shards from a snapshot, and begin an attempt at training.

        Args:
            ranks: number of workers.
            step: steps that the snapshot's tables have taken.
            optimizer: optimizer of the rows; None to serve them only.
            snapshot_uri: one generation of a snapshot.

        Raises:
            ShardUnavailable: a shard does not start.
            MemoryServiceError: the snapshot cannot be used.
        """
        self._place(self._shards(), snapshot_uri)
        if optimizer is None:
            self._attempt = Attempt(0, ranks, step, 0)
            return
        after = self._attempt.incarnation if self._attempt else 0
        incarnation = max(time.time_ns(), after + 1)
        self._attempt = begin_attempt(self.address(), ranks, step, optimizer, snapshot_uri, incarnation)

    def attempt(self) -> tuple[str, Attempt]:
        """Return the address of a shard, and the attempt under way.

        Raises:
            ShardUnavailable: none has begun.
        """
        if self._attempt is None:
            raise ShardUnavailable("no attempt at training has begun")
        return self.address(), self._attempt

    def address(self) -> str:
        """Return HOST:PORT of a shard.

        Raises:
            ShardUnavailable: none has started yet.
        """
        if self._placement is None:
            raise ShardUnavailable("the shards of the run have not started yet")
        return self._placement.shards[0].address

    def abort(self, message: str) -> None:
        """End the attempt for a reason that trying again will not mend; workers that wait for others are let go."""
        self._failure = self._failure or message
        if self._attempt is not None and self._attempt.incarnation:
            end_attempt(self.address(), self._attempt)

    def failure(self) -> str | None:
        """Return why the run was ended, or None."""
        return self._failure

    def shutdown(self) -> None:
        """End the shards."""
        for name in self._fleet.running():
            self._fleet.stop(name)

    def _shards(self) -> list[Whereabouts]:
        """Start the shards that are missing, and wait for all."""
        until = time.monotonic() + _START_S
        found: dict[str, Whereabouts] = {}
        while len(found) < len(self._names):
            for name in self._names:
                self._fleet.start(name)
                if name not in found and (where := self._fleet.locate(name)) is not None:
                    found[name] = where
            if time.monotonic() > until:
                missing = [name for name in self._names if name not in found]
                raise ShardUnavailable(f"{', '.join(missing)} did not start within {_START_S:g} s: is there room?")
            time.sleep(_LOOK_S)
        return [found[name] for name in self._names]

    def _place(self, shards: Sequence[Whereabouts], snapshot_uri: str) -> None:
        incarnations = [where.incarnation for where in shards]
        if self._placement is not None and incarnations == self._incarnations:
            return
        addresses = [ShardAddress(where.shard, where.address) for where in shards]
        epoch = self._placement.epoch + 1 if self._placement else 1
        specs = Snapshot.open(snapshot_uri).specs.values()
        placement = replace(Placement.build(1, addresses, specs), epoch=epoch)
        reshape(None, placement, snapshot_uri)
        retire(placement)
        self._placement, self._incarnations = placement, incarnations
