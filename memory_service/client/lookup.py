"""The state machine of one lookup: which rows were requested from which shards, and what follows from each event.

Pure: it knows no thread, lock, socket, byte of a row or clock. Its owner reports events (an answer landed, a request
failed, time passed, the placement was read again) and performs the actions that each returns. So every order of events
can be explored by a test.

Each row is *covered* while a request that is expected to be answered asks for it, or while it waits for a newer
placement. The rule behind every transition: a row that is neither here nor covered is requested from another replica at
once. A request that is late does not cover its rows any more, but its answer is taken if it comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from memory_service.client.replica_choice import choose
from memory_service.errors import DeadlineExceeded, MemoryServiceError, ShardUnavailable, WrongEpoch
from memory_service.placement.placement import UNASSIGNED, Placement, ShardAddress
from memory_service.tables.spec import TableSpec

Places = slice | NDArray[np.int64]
"""Indices into the rows of a lookup."""

_ROUNDS = ((ShardUnavailable, 1), (WrongEpoch, 5))
"""Times that the placement is read again for the sake of a row, by the error that its last request ended in."""
_TORN_ATTEMPTS = 10
"""Attempts after which a table whose version keeps changing is given up; a torn attempt counts twice."""
_AS_GOOD_AS_FAILED = 10.0
"""A request that takes this many times its patience is replaced even when the hedging budget is used up."""


class Policy(Protocol):
    """What a lookup is told about the rest of the client."""

    request_rows: int
    """Most rows in one request."""

    @property
    def placement(self) -> Placement:
        """The newest placement known. Other threads replace it at any time, so an event reads it once."""

    def turn(self) -> int:
        """A number that grows with each choice, so that replicas take turns."""

    def suspects(self) -> frozenset[str]:
        """Shards to prefer others to, because they failed or were late recently."""

    def patience_s(self, rows: int) -> float:
        """Seconds after which a request for so many rows is late."""

    def may_hedge(self) -> bool:
        """Whether the hedging budget has room for a request."""

    def spend_hedge(self) -> bool:
        """Take a request from the hedging budget; False if it has no room."""


class Outcome(Enum):
    """What became of a request."""

    PENDING = "pending"
    LANDED = "landed"
    FAILED = "failed"


class Reason(Enum):
    """Why a request was sent."""

    FIRST = "first"
    HEDGE = "hedge"
    """Another replica was late."""
    FAILOVER = "failover"
    """Another replica failed."""
    RETRY = "retry"
    """The placement was read again."""


@dataclass(eq=False)
class ShardRequest:
    """Rows of a lookup that are requested from one shard in one message."""

    shard: ShardAddress
    places: Places
    ids: NDArray[np.int64]
    """Row ids at these places."""
    epoch: int
    """Epoch of the placement that the shard was chosen by."""
    attempt: int
    """Attempt of the lookup that the request belongs to."""
    rounds: int
    """Times that the placement had been read again for the sake of these rows."""
    reason: Reason
    sent: float
    """Moment of the monotonic clock at which the request was sent."""
    outcome: Outcome = Outcome.PENDING
    hedged: int | None = None
    """Epoch of the placement by which other replicas were asked because this request was late; None while it is not."""

    @property
    def late(self) -> bool:
        """Whether the request has taken longer than its patience, and covers its rows no more."""
        return self.hedged is not None


@dataclass(frozen=True)
class Send:
    """Send these requests."""

    requests: Sequence[ShardRequest]
    reason: Reason
    late: ShardAddress | None = None
    """Shard whose request is late and hedged by these."""


@dataclass(frozen=True)
class Keep:
    """Copy the rows that just landed to the places of this request."""

    request: ShardRequest


@dataclass(frozen=True)
class RefreshPlacement:
    """Read the placement again, unless it is newer than `epoch` already, then report `refreshed`."""

    epoch: int
    rounds: int


@dataclass(frozen=True)
class Restart:
    """Begin another attempt: the rows so far belong to an outdated version of the table."""


@dataclass(frozen=True)
class Finish:
    """All rows are in place: the lookup has ended."""


@dataclass(frozen=True)
class Fail:
    """The lookup has ended in this error."""

    error: MemoryServiceError


Action = Send | Keep | RefreshPlacement | Restart | Finish | Fail


@dataclass(frozen=True)
class _Waiting:
    """Rows that wait for the placement to be read again."""

    places: NDArray[np.int64]
    rounds: int
    error: MemoryServiceError
    """The error that these rows end in if no shard has them then either."""


class Lookup:
    """Rows requested together; ends once, in `Finish` or in `Fail`. Its events are for one thread at a time."""

    def __init__(
        self,
        spec: TableSpec,
        distinct: NDArray[np.int64],
        started: float,
        timeout_s: float,
        policy: Policy,
        min_version: int = 0,
    ) -> None:
        """Describe a lookup of `distinct` row ids [U]; nothing is requested until `begin`."""
        self.spec = spec
        self.min_version = min_version
        """Oldest version of the table whose rows are taken."""
        self.timeout_s = timeout_s
        self.deadline = started + timeout_s
        """Moment of the monotonic clock at which the lookup fails."""
        self.attempt = 0
        self.over = False
        self.ids = distinct
        """Row ids in the order of the current attempt's places, [U]."""
        self.order: NDArray[np.int64] | None = None
        """Index into `distinct` of each place; None where places are in the order of `distinct`."""
        self.version: int | None = None
        """Version of the table that all rows of the current attempt belong to; None while there are none."""
        self.requests: list[ShardRequest] = []
        """Requests of the current attempt."""
        self._distinct = distinct
        self._policy = policy
        self._wanted: Places = slice(None)
        self._waiting: list[_Waiting] = []
        self._arranged = False

    def begin(self, now: float, hits: NDArray[np.bool_] | None = None, version: int | None = None) -> list[Action]:
        """Start an attempt.

        Args:
            now: moment of the monotonic clock.
            hits: rows that are in place already, such as those of a cache, [U]; None for none. Places are then in the
                order of the distinct ids; without hits, rows are grouped by shard, so that each answer is one copy.
            version: version of the table that these rows belong to.

        Raises:
            UnknownTable: the placement has no such table.
        """
        self.attempt += 1
        self.requests, self._waiting, self._arranged = [], [], False
        self.ids, self.order, self.version = self._distinct, None, version
        missing = None if hits is None else np.flatnonzero(~hits)
        placement = self._policy.placement
        shards = self._choose(placement, self.ids if missing is None else self.ids[missing])
        grouping = _grouping(shards)
        if missing is None:
            self._wanted = slice(None)
            if grouping is not None:
                self.order, self.ids = grouping, self.ids[grouping]
        else:
            self._wanted = missing = missing if grouping is None else missing[grouping]
        grouped = shards if grouping is None else shards[grouping]
        return [self._request(placement, missing, grouped, 0, Reason.FIRST, now)]

    def adopt(
        self,
        placement: Placement,
        runs: Sequence[tuple[int, int, int]],
        sent: float,
        hits: int = 0,
        version: int | None = None,
    ) -> Sequence[ShardRequest]:
        """Go on from a first attempt whose requests were sent already; what became of them is reported next.

        Args:
            placement: the placement that the shards were chosen by.
            runs: (shard, low, high) of each request, an index into the placement's shards and a range of places.
                Together they are all places from `hits` on, in order.
            sent: moment of the monotonic clock at which they were sent.
            hits: the first places, whose rows are here already.
            version: version of the table that these rows belong to.

        Returns:
            The requests, in the order of the runs.
        """
        self.attempt = 1
        if hits:
            self._wanted, self.version = np.arange(hits, len(self.ids)), version
        self.requests = [
            ShardRequest(
                *(placement.shards[shard], slice(low, high), self.ids[low:high], placement.epoch),
                *(self.attempt, 0, Reason.FIRST, sent),
            )
            for shard, low, high in runs
        ]
        return list(self.requests)

    def arranged(self, attempt: int) -> list[Action]:
        """The owner is ready to hand out the rows of an attempt."""
        if self.over or attempt != self.attempt:
            return []
        self._arranged = True
        return self._finish_if_complete()

    def landed(self, request: ShardRequest, version: int, count: int) -> list[Action]:
        """A shard answered a request with `count` rows of a version of the table."""
        if not self._expects(request):
            return []
        if count != len(request.ids):
            return self.abort(
                MemoryServiceError(f"{request.shard.shard} sent {count} rows for {len(request.ids)} row ids")
            )
        if self.version not in (None, version):
            return self._tear()
        self.version, request.outcome = version, Outcome.LANDED
        return [Keep(request), *self._finish_if_complete()]

    def failed(self, request: ShardRequest, error: MemoryServiceError, now: float) -> list[Action]:
        """A request will not be answered."""
        if not self._expects(request):
            return []
        request.outcome = Outcome.FAILED
        places = self._uncovered(_indices(request.places))
        if not places.size:
            return []
        actions: list[Action] = []
        if isinstance(error, ShardUnavailable):
            sent, places = self._reroute(self._policy.placement, places, request.rounds, Reason.FAILOVER, now)
            actions += sent
        rounds = next((limit for kind, limit in _ROUNDS if isinstance(error, kind)), 0)
        if places.size and request.rounds < rounds:
            self._waiting.append(_Waiting(places, request.rounds + 1, error))
            actions.append(RefreshPlacement(request.epoch, request.rounds + 1))
        elif not self._awaited(places):
            return self.abort(error)
        return actions

    def refreshed(self, now: float) -> list[Action]:
        """The placement was read again."""
        waiting, self._waiting = self._waiting, []
        if self.over:
            return []
        placement = self._policy.placement
        actions: list[Action] = []
        for item in waiting:
            sent, left = self._reroute(placement, self._uncovered(item.places), item.rounds, Reason.RETRY, now)
            if not self._awaited(left):
                return self.abort(item.error)
            actions += sent
        return actions

    def tick(self, now: float) -> list[Action]:
        """Time passed: hedge requests that are late, and end the lookup at its deadline."""
        if self.over:
            return []
        if now >= self.deadline:
            return self.abort(self._overdue())
        placement = self._policy.placement
        actions: list[Action] = []
        for request in [r for r in self.requests if r.outcome is Outcome.PENDING and r.hedged != placement.epoch]:
            patience = (now - request.sent) / self._policy.patience_s(len(request.ids))
            actions += self._hedge(placement, request, patience, now)
        return actions

    def abort(self, error: MemoryServiceError) -> list[Action]:
        """End in an error, unless the lookup has ended."""
        if self.over:
            return []
        self.over = True
        return [Fail(error)]

    def _hedge(self, placement: Placement, request: ShardRequest, patience: float, now: float) -> list[Action]:
        """Ask other replicas once a request has taken longer than its patience, if the hedging budget allows it.

        Requests to failed shards, and requests slow enough to count as failed, do not use up the hedging budget; nor do
        requests that were hedged before, once a newer placement may name other replicas.
        """
        if patience <= 1:
            return []
        free = request.late or patience > _AS_GOOD_AS_FAILED or request.shard.shard in self._policy.suspects()
        if not free and not self._policy.may_hedge():
            return []
        first, request.hedged = not request.late, placement.epoch
        places = self._uncovered(_indices(request.places))
        hedge, _ = self._reroute(placement, places, request.rounds, Reason.HEDGE, now)
        if hedge and not free:
            self._policy.spend_hedge()
        return [replace(send, late=request.shard if first else None) for send in hedge]

    def _reroute(
        self, placement: Placement, places: NDArray[np.int64], rounds: int, reason: Reason, now: float
    ) -> tuple[list[Send], NDArray[np.int64]]:
        """Request rows from replicas that were not tried in this round; also the places for which there is none."""
        if not places.size:
            return [], places
        shards = self._choose(placement, self.ids[places], self._tried(placement, places, rounds))
        able = np.flatnonzero(shards != UNASSIGNED)
        left = np.delete(places, able)
        able = able[np.argsort(shards[able], kind="stable")]
        if not able.size:
            return [], left
        return [self._request(placement, places[able], shards[able], rounds, reason, now)], left

    def _request(
        self,
        placement: Placement,
        places: NDArray[np.int64] | None,
        shards: NDArray[np.uint16],
        rounds: int,
        reason: Reason,
        now: float,
    ) -> Send:
        """Requests for rows that are grouped by shard; `places` None means all rows in order."""
        requests = []
        for shard, low, high in _runs(shards, self._policy.request_rows):
            where = slice(low, high) if places is None else places[low:high]
            address, ids = placement.shards[shard], self.ids[where]
            requests.append(ShardRequest(address, where, ids, placement.epoch, self.attempt, rounds, reason, now))
        self.requests += requests
        return Send(requests, reason)

    def _choose(
        self,
        placement: Placement,
        ids: NDArray[np.int64],
        tried: dict[ShardAddress, NDArray[np.bool_]] | None = None,
    ) -> NDArray[np.uint16]:
        blocks = ids >> self.spec.block_shift
        return choose(placement, self.spec.name, blocks, self._policy.turn(), self._policy.suspects(), tried)

    def _tried(
        self, placement: Placement, places: NDArray[np.int64], rounds: int
    ) -> dict[ShardAddress, NDArray[np.bool_]]:
        """By shard, which of these places were requested from it in this round or are requested still."""
        tried: dict[ShardAddress, NDArray[np.bool_]] = {}
        for request in self.requests:
            if request.outcome is Outcome.PENDING or (request.rounds >= rounds and request.epoch == placement.epoch):
                mask = tried.setdefault(request.shard, np.zeros(len(self.ids), np.bool_))
                mask[request.places] = True
        return {shard: mask[places] for shard, mask in tried.items()}

    def _uncovered(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of these places whose rows are not here, not expected from a request nor waiting for a placement."""
        covered = np.zeros(len(self.ids), np.bool_)
        for request in self.requests:
            if request.outcome is Outcome.LANDED or (request.outcome is Outcome.PENDING and not request.late):
                covered[request.places] = True
        for item in self._waiting:
            covered[item.places] = True
        return places[~covered[places]]

    def _awaited(self, places: NDArray[np.int64]) -> bool:
        """Whether late requests may still bring the rows of all these places."""
        awaited = np.zeros(len(self.ids), np.bool_)
        for request in self.requests:
            if request.outcome is Outcome.PENDING:
                awaited[request.places] = True
        return bool(awaited[places].all())

    def _expects(self, request: ShardRequest) -> bool:
        return not self.over and request.attempt == self.attempt and request.outcome is Outcome.PENDING

    def _finish_if_complete(self) -> list[Action]:
        if not self._arranged or not self._is_complete():
            return []
        self.over = True
        return [Finish()]

    def _is_complete(self) -> bool:
        landed = [request for request in self.requests if request.outcome is Outcome.LANDED]
        if len(landed) == len(self.requests):
            return not self._waiting
        if all(request.reason is Reason.FIRST for request in self.requests):
            return False  # without a second request for a row, each of them is needed
        here = np.zeros(len(self.ids), np.bool_)
        for request in landed:
            here[request.places] = True
        return bool(here[self._wanted].all())

    def _tear(self) -> list[Action]:
        """Give up an attempt whose answers belong to different versions: an update was committed meanwhile."""
        self.attempt += 1
        self.requests, self._waiting, self._arranged = [], [], False
        if self.attempt > _TORN_ATTEMPTS:
            return self.abort(
                MemoryServiceError(f"table {self.spec.name!r}: its version kept changing during the lookup, try again")
            )
        return [Restart()]

    def _overdue(self) -> DeadlineExceeded:
        owed = [request for request in self.requests if request.outcome is Outcome.PENDING]
        owed = owed or [request for request in self.requests if request.outcome is Outcome.FAILED]
        shards = list(dict.fromkeys(request.shard for request in owed))
        names = ", ".join(f"{shard.shard} at {shard.address}" for shard in shards) or "the shards"
        epoch = owed[0].epoch if owed else None
        return DeadlineExceeded(
            f"table {self.spec.name!r}: no answer within {self.timeout_s:g} s from {names}, epoch {epoch}",
            self.spec.name,
            shards[0].shard if shards else None,
            epoch,
        )


def _indices(places: Places) -> NDArray[np.int64]:
    return np.arange(places.start, places.stop) if isinstance(places, slice) else places


def _grouping(shards: NDArray[np.uint16]) -> NDArray[np.int64] | None:
    """The order that brings equal shards together; None if they are together already."""
    if not len(shards) or (shards == shards[0]).all():
        return None
    return np.argsort(shards, kind="stable")


def _runs(shards: NDArray[np.uint16], max_rows: int) -> Iterator[tuple[int, int, int]]:
    """(shard, low, high) for each run of equal shards, cut at `max_rows`; equal shards must lie together."""
    alike = not len(shards) or shards[0] == shards[-1]
    starts = [] if alike else (np.flatnonzero(shards[1:] != shards[:-1]) + 1).tolist()
    for start, end in pairwise([0, *starts, len(shards)]):
        for low in range(start, end, max_rows):
            yield int(shards[low]), low, min(low + max_rows, end)
