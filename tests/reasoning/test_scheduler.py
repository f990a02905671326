"""Who gets to run: first come, first served, as slots and the prefill budget allow."""

import pytest

from reasoning.request import Request
from reasoning.scheduler import Scheduler, Sequence, batch_of


def sequence(name, length):
    return Sequence(Request(name), list(range(length)), limit=64)


def names(sequences):
    return [item.request.id for item in sequences]


def advance(sequences, token=200):
    for item in sequences:
        item.num_cached = len(item.token_ids)
        item.token_ids.append(token)


def test_a_sequence_knows_what_is_fresh_and_what_came_before():
    item = sequence("a", 5)
    assert (item.fresh, item.history(2), item.new_tokens) == ([0, 1, 2, 3, 4], [], [])
    advance([item], 7)
    assert (item.fresh, item.history(2), item.new_tokens) == ([7], [3, 4], [7])
    advance([item], 8)
    assert (item.fresh, item.history(2), item.new_tokens) == ([8], [4, 7], [7, 8])
    short = sequence("b", 1)
    advance([short])
    assert short.history(2) == [0]


def test_prompts_enter_in_order_while_slots_last():
    scheduler = Scheduler(slots=2, prefill_tokens=100, slot_pages=2)
    for name in "abc":
        scheduler.add(sequence(name, 3))
    admitted = scheduler.schedule()
    assert names(admitted) == ["a", "b"]
    assert sorted(item.pages for item in admitted) == [(0, 1), (2, 3)]
    advance(admitted)
    assert names(scheduler.schedule()) == ["a", "b"]  # no slot for c: those that run go on
    scheduler.finish(admitted[0])
    entered = scheduler.schedule()
    assert names(entered) == ["c"]
    assert entered[0].pages == admitted[0].pages
    advance(entered)
    assert names(scheduler.schedule()) == ["b", "c"]


@pytest.mark.parametrize(
    ("lengths", "steps"),
    [
        ([4, 6, 1], ["ab", "c", "abc"]),
        ([4, 7, 1], ["a", "bc", "abc"]),  # nobody overtakes
        ([30, 1], ["a", "b", "ab"]),  # a prompt beyond the budget enters alone
        ([1, 30], ["a", "b", "ab"]),
    ],
    ids=str,
)
def test_one_step_takes_prompts_up_to_the_prefill_budget(lengths, steps):
    scheduler = Scheduler(slots=4, prefill_tokens=10, slot_pages=2)
    for name, length in zip("abc", lengths, strict=False):
        scheduler.add(sequence(name, length))
    for expected in steps:
        scheduled = scheduler.schedule()
        assert "".join(names(scheduled)) == expected
        advance(scheduled)


def test_idle_means_nothing_waits_or_runs():
    scheduler = Scheduler(slots=1, prefill_tokens=10, slot_pages=2)
    assert scheduler.idle
    item = sequence("a", 3)
    scheduler.add(item)
    assert not scheduler.idle
    scheduler.schedule()
    assert not scheduler.idle
    scheduler.finish(item)
    assert scheduler.idle
    assert scheduler.schedule() == []


def test_a_batch_lays_fresh_tokens_end_to_end():
    scheduler = Scheduler(slots=4, prefill_tokens=100, slot_pages=2)
    for name, length in (("a", 3), ("b", 2)):
        scheduler.add(sequence(name, length))
    items = scheduler.schedule()
    advance(items[:1], 99)
    batch = batch_of(items)
    assert batch.token_ids.tolist() == [99, 0, 1]
    assert (batch.lengths, batch.starts) == ((1, 2), (3, 0))
    assert batch.pages == tuple(item.pages for item in items)
    assert batch.positions.tolist() == [3, 0, 1]
    assert batch.last_tokens.tolist() == [0, 2]
