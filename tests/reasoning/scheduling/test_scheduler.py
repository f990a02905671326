"""Who gets to run: by arrival, by landed rows, by pages and places."""

from __future__ import annotations

import time

import pytest

from reasoning.model.batch import PAGE_TOKENS
from reasoning.request import Request, SamplingParams
from reasoning.scheduling.pages import PagePool
from reasoning.scheduling.scheduler import Limits, Scheduler
from reasoning.scheduling.sequence import Sequence


class Rows:
    """Rows that land when the test says so."""

    def __init__(self, pieces):
        self.pieces, self.landed, self.sent = pieces, False, 0.0


class Bench:
    """A scheduler and the rows that it requested."""

    def __init__(self, max_batch=4, prefill_tokens=100, pages=64, overlap=True, land=True, keep=True):
        self.asked = []
        self.land = land
        limits = Limits(max_batch, prefill_tokens, overlap)
        self.scheduler = Scheduler(limits, PagePool(pages, keep), self.ask, lambda _: [])
        self.arrivals = 0

    def ask(self, pieces):
        rows = Rows(pieces)
        rows.landed = self.land
        self.asked.append(rows)
        return rows

    def add(self, name, length, fill=None, first=None, limit=10_000):
        tokens = list(range(length)) if fill is None else [fill] * length
        sequence = Sequence(Request(name, sampling=SamplingParams()), tokens, limit, self.arrivals, first)
        self.arrivals += 1
        self.scheduler.add(sequence)
        return sequence

    def step(self):
        """Run one step; what it ran, as name -> (start, end)."""
        self.scheduler.send()
        pieces = self.scheduler.take()
        ran = {}
        for piece in pieces:
            start, _ = ran.get(piece.sequence.request.id, (piece.start, 0))
            ran[piece.sequence.request.id] = (start, piece.end)
        self.scheduler.done(pieces)
        for piece in pieces:
            final = piece.final
            piece.sequence.num_cached = piece.end
            piece.sequence.name_pages(self.scheduler.pool)
            if final:
                piece.sequence.token_ids.append(200)
        self.scheduler.check_integrity()
        return ran


def test_prompts_enter_in_order_while_places_last():
    bench = Bench(max_batch=2)
    first, _, _ = (bench.add(name, 3) for name in "abc")
    assert bench.step() == {"a": (0, 3), "b": (0, 3)}
    assert bench.step() == {"a": (3, 4), "b": (3, 4)}
    bench.scheduler.remove(first)
    assert bench.step() == {"b": (4, 5), "c": (0, 3)}


def test_a_long_prompt_enters_in_chunks_beside_those_who_decode():
    bench = Bench(prefill_tokens=40)
    bench.add("a", 3)
    bench.step()
    bench.add("b", 100)
    assert [bench.step()["b"] for _ in range(3)] == [(0, 40), (40, 80), (80, 100)]
    assert bench.step() == {"a": (6, 7), "b": (100, 101)}


def test_chunks_of_one_prompt_run_as_one_where_the_step_has_room():
    bench = Bench(prefill_tokens=2000)
    bench.add("a", 1800)
    assert bench.step() == {"a": (0, 1800)}
    assert [len(rows.pieces[0].token_ids) for rows in bench.asked] == [512, 512, 512, 264]


def test_rows_are_asked_for_while_a_prompt_waits_but_not_without_end():
    bench = Bench(max_batch=1, prefill_tokens=10)
    for name in "abcd":
        bench.add(name, 8)
    bench.scheduler.send()
    assert [rows.pieces[0].sequence.request.id for rows in bench.asked] == ["a", "b", "c"]  # two steps ahead


def test_the_group_whose_rows_have_landed_runs_first():
    bench = Bench(land=False)
    bench.add("slow", 3)
    bench.add("fast", 3)
    bench.scheduler.send()
    bench.asked[1].landed = True
    assert bench.step() == {"fast": (0, 3)}
    bench.scheduler.send()
    bench.asked[0].landed = bench.asked[2].landed = True
    assert bench.step() == {"fast": (3, 4), "slow": (0, 3)}


def test_a_cohort_runs_when_all_its_rows_have_landed(monkeypatch):
    bench = Bench()
    first, second = bench.add("a", 3), bench.add("b", 3)
    bench.step()
    bench.land = False
    bench.scheduler.send()
    bench.add("c", 3)

    def land(rows, until):
        for future in rows:
            future.landed = True

    monkeypatch.setattr("reasoning.scheduling.scheduler.wait_any", land)
    assert list(bench.step()) == ["a", "b", "c"]
    assert (first.cohort, second.cohort) == (0, 0)


def test_alone_a_cohort_runs_before_its_rows_are_there(monkeypatch):
    monkeypatch.setattr(
        "reasoning.scheduling.scheduler.wait_any", lambda *_: pytest.fail("it waits though nothing else can run")
    )
    bench = Bench(land=False)
    bench.add("a", 3)
    assert bench.step() == {"a": (0, 3)}
    assert bench.step() == {"a": (3, 4)}


@pytest.mark.parametrize(
    ("asked_s_ago", "hidden_s", "together"),
    [(0, 1000, True), (3000, 1000, False), (0, 10, False)],
    ids=["expected soon", "late", "not expected yet"],
)
def test_a_prompt_waits_for_a_cohort_that_is_expected_soon(asked_s_ago, hidden_s, together):
    bench = Bench()
    bench.add("a", 3)
    bench.step()
    bench.scheduler.pace.record(round_trip_s=1000, hidden_s=hidden_s, computed_s=0)
    bench.land = False
    bench.scheduler.send()
    bench.asked[-1].sent = time.perf_counter() - asked_s_ago
    bench.land = True
    bench.add("b", 3)
    assert list(bench.step()) == (["a", "b"] if together else ["b"])


def test_a_cohort_that_has_landed_does_not_wait_for_one_that_is_expected():
    bench = Bench(max_batch=8)
    for name in "ab":
        bench.add(name, 3)
    bench.step()
    bench.scheduler.cohorts = 2
    bench.scheduler.send()
    bench.scheduler.pace.record(round_trip_s=1000, hidden_s=1000, computed_s=0)
    expected = bench.asked[-2]
    expected.landed, expected.sent = False, time.perf_counter()
    assert [piece.sequence.request.id for piece in expected.pieces] == ["b"]
    assert list(bench.step()) == ["a"]


def test_two_cohorts_take_turns_and_stay_even():
    bench = Bench(max_batch=8)
    sequences = [bench.add(name, 3) for name in "abcdef"]
    bench.step()
    bench.scheduler.cohorts = 2
    turns = ["".join(bench.step()) for _ in range(4)]
    assert sorted(turns[0] + turns[1]) == list("abcdef")
    assert (len(turns[0]), turns[2], turns[3]) == (3, turns[0], turns[1])
    for sequence in [s for s in sequences if s.cohort == 0][:2]:
        bench.scheduler.remove(sequence)
    assert sorted(len(bench.step()) for _ in range(4))[:2] == [2, 2]
    bench.scheduler.cohorts = 1
    for _ in range(3):
        ran = bench.step()
    assert len(ran) == 4


def test_prompts_that_begin_alike_share_pages():
    bench = Bench(prefill_tokens=1000)
    long = 3 * PAGE_TOKENS
    first = bench.add("a", long)
    bench.step()
    second = bench.add("b", long)
    assert bench.step()["b"] == (2 * PAGE_TOKENS, long)  # the last token is computed: its logits are wanted
    assert second.pages[:2] == first.pages[:2]
    assert second.pages[2:] != first.pages[2:]
    bench.scheduler.remove(first)
    bench.scheduler.remove(second)
    assert bench.add("c", long + 1).num_cached == 0
    assert bench.step()["c"] == (long, long + 1)


def test_prompts_that_arrive_together_share_what_the_first_has_computed():
    bench = Bench(max_batch=2, prefill_tokens=200)
    for name in "abc":
        bench.add(name, 150)
    assert bench.step() == {"a": (0, 150)}  # b would not fit into the step
    assert bench.step() == {"a": (150, 151)}  # the rows requested for b are not needed any more
    assert bench.step() == {"a": (151, 152), "b": (128, 150)}


def test_further_samples_wait_for_the_first_ones_prompt():
    bench = Bench(prefill_tokens=1000)
    first = bench.add("a", 130)
    bench.add("b", 130, first=first)
    assert bench.step() == {"a": (0, 130)}
    assert bench.step() == {"a": (130, 131), "b": (128, 130)}


def test_the_latest_yields_its_pages_and_resumes():
    bench = Bench(pages=4, prefill_tokens=1000, keep=False)
    first = bench.add("a", 2 * PAGE_TOKENS - 2, fill=1)
    second = bench.add("b", PAGE_TOKENS - 2, fill=2)
    assert list(bench.step()) == ["a", "b"]
    while not bench.scheduler.preemptions:
        bench.step()
    assert (first.started, second.started, second.pages, second.num_cached) == (True, False, [], 0)
    known = len(second.token_ids)
    bench.scheduler.remove(first)
    assert bench.step() == {"b": (0, known)}
    assert second.prompt_tokens == PAGE_TOKENS - 2


def test_a_cancelled_sequence_leaves_its_cohorts_lookup():
    bench = Bench()
    bench.add("a", 3)
    second = bench.add("b", 3)
    bench.step()
    bench.scheduler.send()
    bench.scheduler.remove(second)
    assert bench.step() == {"a": (3, 4)}


def test_a_step_that_was_not_done_is_taken_again():
    bench = Bench()
    bench.add("a", 3)
    bench.scheduler.send()
    assert bench.scheduler.take() == bench.scheduler.take() != []
    assert bench.step() == {"a": (0, 3)}


def test_integrity_sees_a_lost_piece():
    bench = Bench()
    sequence = bench.add("a", 3)
    bench.scheduler.send()
    sequence.pieces.clear()
    with pytest.raises(AssertionError, match="a piece is lost"):
        bench.scheduler.check_integrity()
