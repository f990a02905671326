"""A bounded model check of the lookup's state machine: every order of sent, late, landed, dead, torn and expired.

All sequences of events up to a bound are explored, states that behave alike once. In every state it is checked

- that each missing row is expected from exactly one place, or from late requests alone because no replica is left,
- that the lookup ends only with all rows of one version in their places, or in an error that is justified,
- that it ends once, and at its deadline at the latest,
- that it would still end in rows if from now on a single shard that has not failed yet answered, and all others stayed
  silent or died.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator

import numpy as np
import pytest

from memory_service import DeadlineExceeded, Placement, ShardAddress, ShardUnavailable, WrongEpoch
from memory_service.client.lookup import (
    Action,
    Fail,
    Finish,
    Keep,
    Lookup,
    Outcome,
    RefreshPlacement,
    Restart,
    Send,
    ShardRequest,
)
from tests.memory_service.conftest import spec_of

ROWS = np.array([3, 70])  # in block 0 and in block 1
SHARDS = tuple(ShardAddress(f"shard-{i}", f"host:{i}") for i in range(3))
PATIENCE, STEP, LONG, TIMEOUT = 1.0, 0.6, 10.2, 1e9  # late after two steps
GONE, WRONG = ShardUnavailable("gone"), WrongEpoch("wrong epoch")
SPEC = spec_of()
Event = tuple[str, int]  # what happened, and to which request


def placement_of(epoch: int, *blocks: list[int]) -> Placement:
    """The replicas of block 0 and of block 1; further blocks as the last."""
    assigned = [[blocks[min(block, 1)][replica] for block in range(SPEC.blocks)] for replica in range(len(blocks[0]))]
    return Placement(epoch, SHARDS, {SPEC.name: np.array(assigned, np.uint16)})


class World:
    """A lookup, the client around it, and everything that was asked of them; serves as the lookup's Policy."""

    request_rows = 100

    def __init__(self, placement: Placement, following: Placement, hedges: int, hits: int | None = None) -> None:
        """Begin a lookup; with `hits`, adopt one that has so many rows of version 1 and has requested the others."""
        self.placement, self.following, self.hedges = placement, following, hedges
        self.now = 0.0
        self.refreshes = 0
        self.torn = False
        self.arranged = 0
        self.ending: Finish | Fail | None = None
        self.kept: dict[int, dict[int, int]] = {}
        self.lookup = Lookup(SPEC, ROWS, 0.0, TIMEOUT, self)
        self.hits = hits or 0
        if hits is None:
            self.take(self.lookup.begin(0.0))
        else:
            shards = placement.tables[SPEC.name][0, ROWS >> SPEC.block_shift].tolist()
            runs = [(shards[place], place, place + 1) for place in range(hits, len(ROWS))]
            assert len(self.lookup.adopt(placement, runs, 0.0, hits, 1)) == len(runs)
            self.kept[1] = dict.fromkeys(range(hits), 1)

    def turn(self) -> int:
        return 0

    def suspects(self) -> frozenset[str]:
        return frozenset()

    def patience_s(self, rows: int) -> float:
        return PATIENCE

    def may_hedge(self) -> bool:
        return self.hedges > 0

    def spend_hedge(self) -> bool:
        self.hedges -= 1
        return True

    def clone(self) -> World:
        """A copy that shares what nothing changes: arrays, placements, shards."""
        other, lookup = copy.copy(self), copy.copy(self.lookup)
        other.kept = {attempt: dict(rows) for attempt, rows in self.kept.items()}
        lookup.requests, lookup._waiting = [copy.copy(request) for request in lookup.requests], [*lookup._waiting]
        other.lookup, lookup._policy = lookup, other
        return other

    @property
    def pending(self) -> list[ShardRequest]:
        return [request for request in self.lookup.requests if request.outcome is Outcome.PENDING]

    def take(self, actions: list[Action], version: int = 0) -> None:
        """Note what the lookup wants done."""
        assert not (self.ending and actions), "an ended lookup stays silent"
        for action in actions:
            if isinstance(action, Keep):
                places = np.arange(len(ROWS))[action.request.places]
                self.kept.setdefault(self.lookup.attempt, {}).update(dict.fromkeys(places.tolist(), version))
            elif isinstance(action, RefreshPlacement):
                self.refreshes += 1
            elif isinstance(action, Restart):
                self.torn = True
            elif isinstance(action, Finish | Fail):
                assert self.ending is None, "a lookup ends once"
                self.ending = action
            else:
                assert isinstance(action, Send), action

    def events(self, versions: tuple[int, ...], epochs: bool) -> Iterator[Event]:
        """What can happen next."""
        if self.ending:
            return
        if self.torn:
            yield ("begin", 0)
        elif not self.arranged:
            yield ("arrange", 0)
        for number in range(len(self.pending)):
            yield from ((f"land {version}", number) for version in versions)
            yield ("die", number)
            if epochs:
                yield ("wrong epoch", number)
        if self.refreshes:
            yield ("refresh", 0)
        if epochs and self.placement is not self.following:
            yield ("another thread learns of the next placement", 0)
        yield ("later", 0)
        yield ("much later", 0)

    def happen(self, event: Event) -> None:
        """Let one event happen."""
        name, number = event
        lookup = self.lookup
        if name == "begin":
            self.torn, self.arranged = False, 0
            self.take(lookup.begin(self.now))
        elif name == "arrange":
            self.arranged = 1
            self.take(lookup.arranged(lookup.attempt))
        elif name.startswith("land"):
            request, version = self.pending[number], int(name.split()[1])
            self.take(lookup.landed(request, version, len(request.ids)), version)
        elif name == "die":
            self.take(lookup.failed(self.pending[number], GONE, self.now))
        elif name == "wrong epoch":
            self.take(lookup.failed(self.pending[number], WRONG, self.now))
        elif name.startswith("another thread"):
            self.placement = self.following
        elif name == "refresh":
            self.refreshes -= 1
            self.take(lookup.refreshed(self.now))
        else:
            self.now += {"later": STEP, "much later": LONG, "tick": 0.0}[name]
            self.take(lookup.tick(self.now))

    def age(self, request: ShardRequest) -> int:
        """How far a request is from the moments at which its lateness matters."""
        age = self.now - request.sent
        return 3 if age > 10 * PATIENCE else 2 if age > PATIENCE else round(age / STEP)

    def signature(self) -> object:
        """Equal for states that behave alike."""
        lookup = self.lookup
        requests = sorted(
            (
                request.shard.shard,
                tuple(request.ids.tolist()),
                request.epoch,
                request.rounds,
                request.hedged or 0,
                request.outcome.value,
                request.outcome is Outcome.PENDING and not request.late and self.age(request),
            )
            for request in lookup.requests
        )
        waiting = sorted((tuple(item.places.tolist()), item.rounds, str(item.error)) for item in lookup._waiting)
        return (
            *(tuple(requests), tuple(waiting), lookup.version, lookup.attempt, self.torn, self.arranged),
            *(self.refreshes, self.hedges, self.placement.epoch, type(self.ending)),
        )


def replicas_of(world: World, row: int) -> list[ShardAddress]:
    assigned = world.placement.tables[SPEC.name][:, row >> SPEC.block_shift]
    return [world.placement.shards[number] for number in assigned.tolist()]


def is_exhausted(world: World, row: int, requests: list[ShardRequest], rounds: int) -> bool:
    """Whether every replica of a row is being asked, or was in this round under the active placement."""
    return all(
        any(
            request.shard == shard
            and (
                request.outcome is Outcome.PENDING
                or (request.rounds >= rounds and request.epoch == world.placement.epoch)
            )
            for request in requests
        )
        for shard in replicas_of(world, row)
    )


def check_expected(world: World) -> None:
    """Each row that is missing is expected from one place; or late requests are all that is left."""
    if world.ending or world.torn:
        return
    world = world.clone()
    world.happen(("tick", 0))
    lookup = world.lookup
    for place, row in enumerate(lookup.ids.tolist()):
        requests = [request for request in lookup.requests if row in request.ids]
        if lookup.attempt == 1 and place < world.hits:
            assert not requests, f"row {row} is here, and requested"
            continue
        if any(request.outcome is Outcome.LANDED for request in requests):
            continue
        pending = [request for request in requests if request.outcome is Outcome.PENDING]
        expected = sum(not request.late for request in pending) + sum(place in item.places for item in lookup._waiting)
        assert expected <= 1, f"row {row} is requested twice"
        if not expected:
            assert pending, f"row {row} is expected from nowhere"
            failed = [request.rounds for request in requests if request.outcome is Outcome.FAILED]
            rounds = max([request.rounds for request in pending] + failed)
            assert is_exhausted(world, row, requests, rounds), f"row {row} waits for late requests alone"


def check_ending(world: World) -> None:
    lookup, ending = world.lookup, world.ending
    if isinstance(ending, Finish):
        kept = world.kept.get(lookup.attempt, {})
        assert sorted(kept) == list(range(len(ROWS))), "a row is missing"
        assert set(kept.values()) == {lookup.version}, "rows of different versions"
        assert sorted(lookup.ids.tolist()) == ROWS.tolist()
    elif isinstance(ending, Fail) and "version kept changing" not in str(ending.error):
        failed = [request for request in lookup.requests if request.outcome is Outcome.FAILED]
        assert failed, "the lookup failed though no request did"
        if ending.error is WRONG:
            assert max(request.rounds for request in failed) == 5
        else:
            assert ending.error is GONE
            last = [request for request in failed if request.rounds >= 1]
            assert any(
                is_exhausted(world, row, [request for request in last if row in request.ids], 1)
                for row in ROWS.tolist()
            ), "a replica was not asked after the placement had been read again"


def check_deadline(world: World) -> None:
    if not world.ending:
        (fail,) = world.clone().lookup.tick(TIMEOUT)
        assert isinstance(fail, Fail)
        assert isinstance(fail.error, DeadlineExceeded)


def check_survives_on(world: World, answering: ShardAddress, others_die: bool) -> None:
    """The lookup ends in rows if this shard answers from now on, whatever became of the others."""
    world = world.clone()
    version = world.lookup.version or 1
    for _ in range(60):
        if world.ending:
            assert isinstance(world.ending, Finish), (
                f"failed with {world.ending.error!r} though {answering.shard} answers"
            )
            return
        event = next_event(world, answering, others_die, version)
        if event[0] == "begin":
            version = 1
        world.happen(event)
        check_expected(world)
    raise AssertionError(f"the lookup waits for ever though {answering.shard} answers")


def next_event(world: World, answering: ShardAddress, others_die: bool, version: int) -> Event:
    if world.torn:
        return ("begin", 0)
    if not world.arranged:
        return ("arrange", 0)
    for number, request in enumerate(world.pending):
        if request.shard == answering:
            return (f"land {world.lookup.version or version}", number)
        if others_die:
            return ("die", number)
    return ("refresh", 0) if world.refreshes else ("much later", 0)


def explore(start: World, depth: int, versions: tuple[int, ...], epochs: bool) -> int:
    """Check every state within `depth` events of the start; the number of states."""
    seen = {start.signature()}
    queue = deque([(start, 0, ())])
    while queue:
        world, distance, path = queue.popleft()
        try:
            check_expected(world)
            check_ending(world)
            check_deadline(world)
            if not world.ending:
                for shard in SHARDS:
                    untouched = not any(r.shard == shard and r.outcome is Outcome.FAILED for r in world.lookup.requests)
                    if untouched and all(shard in replicas_of(world, row) for row in ROWS.tolist()):
                        for others_die in (False, True):
                            check_survives_on(world, shard, others_die)
        except AssertionError as error:
            raise AssertionError(f"{error}\nafter {path}") from error
        if distance == depth:
            continue
        for event in world.events(versions, epochs):
            following = world.clone()
            following.happen(event)
            signature = following.signature()
            if signature not in seen:
                seen.add(signature)
                queue.append((following, distance + 1, (*path, event)))
    return len(seen)


PLACEMENTS = {
    "one replica": [[0], [1]],
    "two replicas on the same shards": [[0, 1], [0, 1]],
    "three replicas on the same shards": [[0, 1, 2], [0, 1, 2]],
    "two replicas that overlap": [[0, 1], [1, 2]],
    "three replicas in another order": [[0, 1, 2], [1, 2, 0]],
}
NEXT = {1: [[2], [0]], 2: [[1, 2], [2, 0]], 3: [[2, 0, 1], [0, 1, 2]]}


def world_of(name: str, hedges: int = 9, hits: int | None = None) -> World:
    blocks = PLACEMENTS[name]
    return World(placement_of(1, *blocks), placement_of(2, *NEXT[len(blocks[0])]), hedges, hits)


@pytest.mark.parametrize("hedges", [0, 1, 9])
@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("one replica", 9),
        ("two replicas on the same shards", 10),
        ("three replicas on the same shards", 8),
        ("two replicas that overlap", 5),
        ("three replicas in another order", 4),
    ],
)
def test_no_order_of_late_dead_and_landed_loses_a_lookup(name: str, depth: int, hedges: int) -> None:
    assert explore(world_of(name, hedges), depth, (1,), epochs=False) > 400


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("one replica", 5),
        ("two replicas on the same shards", 5),
        ("three replicas on the same shards", 4),
        ("two replicas that overlap", 4),
    ],
)
def test_no_order_of_outdated_epochs_loses_a_lookup(name: str, depth: int) -> None:
    assert explore(world_of(name), depth, (1,), epochs=True) > 400


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("one replica", 7),
        ("two replicas on the same shards", 7),
        ("three replicas on the same shards", 6),
        ("two replicas that overlap", 5),
    ],
)
def test_no_order_of_torn_versions_mixes_rows(name: str, depth: int) -> None:
    assert explore(world_of(name), depth, (1, 2), epochs=False) > 300


@pytest.mark.parametrize("hits", [0, 1])
@pytest.mark.parametrize(
    ("name", "depth"),
    [("one replica", 5), ("two replicas on the same shards", 4), ("two replicas that overlap", 4)],
)
def test_no_order_of_events_loses_a_lookup_that_was_adopted(name: str, depth: int, hits: int) -> None:
    assert explore(world_of(name, hits=hits), depth, (1, 2), epochs=True) > 100
