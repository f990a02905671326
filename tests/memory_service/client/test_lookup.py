"""The state machine of a lookup, one event at a time; test_lookup_model.py explores every order of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from memory_service import (
    DeadlineExceeded,
    MemoryServiceError,
    Placement,
    ResourceExhausted,
    ShardAddress,
    ShardUnavailable,
    TableSpec,
    WrongEpoch,
)
from memory_service.client.lookup import (
    Fail,
    Finish,
    Keep,
    Lookup,
    Reason,
    RefreshPlacement,
    Restart,
    Send,
    ShardRequest,
)

SHARDS = tuple(ShardAddress(f"shard-{i}", f"10.0.0.{i}:7000") for i in range(4))
PATIENCE_S, TIMEOUT_S = 1.0, 100.0
GONE = ShardUnavailable("gone")


@dataclass
class FixedPolicy:
    """A client that never changes its mind: replicas are chosen in the order of the placement."""

    placement: Placement
    request_rows: int = 100
    hedges: int = 10
    suspected: set[str] = field(default_factory=set)

    def turn(self) -> int:
        return 0

    def suspects(self) -> frozenset[str]:
        return frozenset(self.suspected)

    def patience_s(self, rows: int) -> float:
        return PATIENCE_S

    def may_hedge(self) -> bool:
        return self.hedges > 0

    def spend_hedge(self) -> bool:
        self.hedges -= 1
        return self.hedges >= 0


def placement_of(epoch: int, *replicas: list[int], shards: int = 3) -> Placement:
    """Block b of the table is on the shards `[replica[b] for replica in replicas]`; later blocks as block 0."""
    blocks = 26
    assigned = [[replica[b] if b < len(replica) else replica[0] for b in range(blocks)] for replica in replicas]
    return Placement(epoch, SHARDS[:shards], {"engram.1": np.array(assigned, np.uint16)})


@pytest.fixture
def policy() -> FixedPolicy:
    """Three blocks, each on two of three shards."""
    return FixedPolicy(placement_of(1, [0, 1, 2], [1, 2, 0]))


@pytest.fixture
def lookup(spec: TableSpec, policy: FixedPolicy) -> Lookup:
    """Of rows 3 and 9 in block 0, 70 in block 1 and 130 in block 2."""
    return Lookup(spec, np.array([3, 9, 70, 130]), 0.0, TIMEOUT_S, policy)


def sent(actions: list) -> list[ShardRequest]:
    return [request for action in actions if isinstance(action, Send) for request in action.requests]


def asked(actions: list) -> dict[str, list[int]]:
    """Row ids by the shard that is asked for them."""
    return {request.shard.shard: request.ids.tolist() for request in sent(actions)}


def test_each_shard_is_asked_once_for_its_rows_which_lie_together(lookup: Lookup) -> None:
    actions = lookup.begin(0.0)
    assert asked(actions) == {"shard-0": [3, 9], "shard-1": [70], "shard-2": [130]}
    assert [request.places for request in sent(actions)] == [slice(0, 2), slice(2, 3), slice(3, 4)]
    assert lookup.ids.tolist() == [3, 9, 70, 130]


def test_a_lookup_ends_when_all_rows_have_landed_and_it_is_arranged(lookup: Lookup) -> None:
    first, second, third = sent(lookup.begin(0.0))
    assert lookup.landed(second, 1, 1) == [Keep(second)]
    assert lookup.arranged(1) == []
    assert lookup.landed(first, 1, 2) == [Keep(first)]
    assert lookup.landed(third, 1, 1) == [Keep(third), Finish()]
    assert lookup.landed(third, 1, 1) == []


def test_a_lookup_of_no_rows_ends_at_once(spec: TableSpec, policy: FixedPolicy) -> None:
    lookup = Lookup(spec, np.empty(0, np.int64), 0.0, TIMEOUT_S, policy)
    assert sent(lookup.begin(0.0)) == []
    assert lookup.arranged(1) == [Finish()]


def test_only_rows_that_are_not_in_the_cache_are_requested(lookup: Lookup) -> None:
    actions = lookup.begin(0.0, hits=np.array([True, False, False, True]), version=5)
    assert asked(actions) == {"shard-0": [9], "shard-1": [70]}
    lookup.arranged(1)
    first, second = sent(actions)
    assert lookup.landed(first, 5, 1) == [Keep(first)]
    assert lookup.landed(second, 5, 1) == [Keep(second), Finish()]


def test_rows_of_another_version_than_the_cached_ones_start_the_lookup_again(lookup: Lookup) -> None:
    (request, _) = sent(lookup.begin(0.0, hits=np.array([True, False, False, True]), version=5))
    assert lookup.landed(request, 6, 1) == [Restart()]


def test_a_request_that_fails_is_replaced_by_other_replicas(lookup: Lookup) -> None:
    first, *_ = sent(lookup.begin(0.0))
    actions = lookup.failed(first, GONE, 0.1)
    assert asked(actions) == {"shard-1": [3, 9]}
    assert sent(actions)[0].reason is Reason.FAILOVER


def test_a_late_request_is_hedged_and_either_answer_will_do(lookup: Lookup, policy: FixedPolicy) -> None:
    first, second, third = sent(lookup.begin(0.0))
    lookup.arranged(1)
    lookup.landed(second, 1, 1)
    lookup.landed(third, 1, 1)
    assert lookup.tick(0.9) == []
    actions = lookup.tick(1.1)
    assert asked(actions) == {"shard-1": [3, 9]}
    assert actions[0].late == SHARDS[0]
    assert policy.hedges == 9
    assert lookup.tick(1.2) == []
    assert lookup.landed(first, 1, 2) == [Keep(first), Finish()]


def test_without_hedging_budget_only_what_is_as_good_as_failed_is_hedged(lookup: Lookup, policy: FixedPolicy) -> None:
    policy.hedges = 0
    lookup.begin(0.0)
    assert lookup.tick(9.9) == []
    assert asked(lookup.tick(10.1)) == {"shard-1": [3, 9], "shard-2": [70], "shard-0": [130]}
    assert policy.hedges == 0


def test_a_late_request_to_a_suspect_is_hedged_without_budget(lookup: Lookup, policy: FixedPolicy) -> None:
    lookup.begin(0.0)
    policy.hedges, policy.suspected = 0, {"shard-0"}
    assert asked(lookup.tick(1.1)) == {"shard-1": [3, 9]}


def test_a_hedge_that_fails_while_the_first_request_is_silent_is_replaced_at_once(spec: TableSpec) -> None:
    """One shard frozen, another killed a moment later, the third one healthy: nobody waits for the deadline."""
    policy = FixedPolicy(placement_of(1, [0], [1], [2]))
    lookup = Lookup(spec, np.array([3]), 0.0, TIMEOUT_S, policy)
    (frozen,) = sent(lookup.begin(0.0))
    lookup.arranged(1)
    (killed,) = sent(lookup.tick(1.1))
    assert killed.shard == SHARDS[1]
    (healthy,) = sent(lookup.failed(killed, GONE, 1.2))
    assert healthy.shard == SHARDS[2]
    assert lookup.landed(healthy, 1, 1) == [Keep(healthy), Finish()]
    assert lookup.landed(frozen, 1, 1) == []


def test_a_hedge_refused_for_its_epoch_reads_the_placement_again(spec: TableSpec) -> None:
    """The first shard is frozen, the second one has retired the epoch: the lookup goes on under the next placement."""
    policy = FixedPolicy(placement_of(1, [0], [1]))
    lookup = Lookup(spec, np.array([3]), 0.0, TIMEOUT_S, policy)
    lookup.begin(0.0)
    (hedge,) = sent(lookup.tick(1.1))
    assert lookup.failed(hedge, WrongEpoch("serves epoch 2"), 1.2) == [RefreshPlacement(1, 1)]
    policy.placement = placement_of(2, [1], [2])
    assert asked(lookup.refreshed(1.3)) == {"shard-1": [3]}


def test_when_every_replica_failed_the_placement_is_read_again_once(lookup: Lookup) -> None:
    first, *_ = sent(lookup.begin(0.0))
    (second,) = sent(lookup.failed(first, GONE, 0.1))
    assert lookup.failed(second, GONE, 0.2) == [RefreshPlacement(1, 1)]
    (third,) = sent(lookup.refreshed(0.3))
    assert third.reason is Reason.RETRY
    (fourth,) = sent(lookup.failed(third, GONE, 0.4))
    assert {third.shard, fourth.shard} == {SHARDS[0], SHARDS[1]}
    assert lookup.failed(fourth, GONE, 0.5) == [Fail(GONE)]


def test_a_wrong_epoch_is_retried_five_times(lookup: Lookup) -> None:
    request, *_ = sent(lookup.begin(0.0))
    for rounds in range(1, 6):
        assert lookup.failed(request, WrongEpoch("no"), 0.1) == [RefreshPlacement(1, rounds)]
        (request,) = sent(lookup.refreshed(0.2))
    assert isinstance(lookup.failed(request, WrongEpoch("no"), 0.3)[0], Fail)


def test_an_error_that_no_replica_would_spare_ends_the_lookup(lookup: Lookup) -> None:
    first, *_ = sent(lookup.begin(0.0))
    error = MemoryServiceError("no")
    assert lookup.failed(first, error, 0.1) == [Fail(error)]
    assert lookup.failed(first, error, 0.2) == []
    assert lookup.tick(0.3) == []


def test_a_hedge_that_is_refused_does_not_end_a_lookup_whose_first_request_may_answer(lookup: Lookup) -> None:
    first, second, third = sent(lookup.begin(0.0))
    lookup.arranged(1)
    lookup.landed(second, 1, 1)
    lookup.landed(third, 1, 1)
    (hedge,) = sent(lookup.tick(1.1))
    assert lookup.failed(hedge, ResourceExhausted("too much"), 1.2) == []
    assert lookup.landed(first, 1, 2) == [Keep(first), Finish()]


def test_rows_of_different_versions_are_never_mixed(lookup: Lookup) -> None:
    first, second, third = sent(lookup.begin(0.0))
    lookup.landed(first, 1, 2)
    assert lookup.landed(second, 2, 1) == [Restart()]
    assert lookup.landed(third, 2, 1) == []  # of the attempt that was given up
    assert lookup.failed(third, GONE, 0.1) == []
    first, second, third = sent(lookup.begin(0.2))
    assert lookup.arranged(1) == []  # the caller's thread comes late with the inverse of the first attempt
    lookup.landed(first, 2, 2)
    lookup.landed(second, 2, 1)
    lookup.landed(third, 2, 1)
    assert lookup.arranged(3) == [Finish()]


def test_a_table_whose_version_keeps_changing_ends_the_lookup(lookup: Lookup) -> None:
    for version in range(2, 100, 2):
        first, second, _ = sent(lookup.begin(0.0))
        lookup.landed(first, version, 2)
        actions = lookup.landed(second, version + 1, 1)
        if actions != [Restart()]:
            break
    assert "its version kept changing" in str(actions[0].error)
    assert version < 20


def test_a_shard_that_sends_too_few_rows_ends_the_lookup(lookup: Lookup) -> None:
    first, *_ = sent(lookup.begin(0.0))
    assert "shard-0 sent 1 rows for 2 row ids" in str(lookup.landed(first, 1, 1)[0].error)


def test_at_the_deadline_the_shards_that_owe_rows_are_named(lookup: Lookup) -> None:
    first, *_ = sent(lookup.begin(0.0))
    lookup.landed(first, 1, 2)
    (fail,) = lookup.tick(TIMEOUT_S)
    assert isinstance(fail.error, DeadlineExceeded)
    assert "no answer within 100 s from shard-1 at 10.0.0.1:7000, shard-2 at 10.0.0.2:7000, epoch 1" in str(fail.error)
    assert (fail.error.table, fail.error.shard, fail.error.epoch) == ("engram.1", "shard-1", 1)


class FickleClient(FixedPolicy):
    """A client whose other threads learn of another placement whenever this one looks at it."""

    @property
    def placement(self) -> Placement:
        self._looks = getattr(self, "_looks", 0) + 1
        return placement_of(self._looks, [2, 1, 0], [0, 0, 1], shards=3 if self._looks % 2 else 4)

    @placement.setter
    def placement(self, placement: Placement) -> None: ...


def test_each_event_goes_by_one_placement_though_other_threads_replace_it(spec: TableSpec) -> None:
    policy = FickleClient(placement_of(1, [0]))
    lookup = Lookup(spec, np.array([3, 70]), 0.0, TIMEOUT_S, policy)
    events = [
        lambda: lookup.begin(0.0),
        lambda: lookup.failed(lookup.requests[0], GONE, 0.1),
        lambda: lookup.tick(20.0),
    ]
    for event in events:
        looks = getattr(policy, "_looks", 0)
        epochs = {request.epoch for request in sent(event())}
        assert policy._looks == looks + 1
        assert epochs == {looks + 1}


def test_large_requests_are_cut(spec: TableSpec) -> None:
    policy = FixedPolicy(placement_of(1, [0]), request_rows=100)
    lookup = Lookup(spec, np.arange(250), 0.0, TIMEOUT_S, policy)
    assert [len(request.ids) for request in sent(lookup.begin(0.0))] == [100, 100, 50]
