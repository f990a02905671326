"""Iterations over an engine's results: each gets its own, and leaving one cancels what it has added."""

from __future__ import annotations

import gc
import itertools

import pytest

from memory_service import LocalMemory, ShardUnavailable
from reasoning.checkpoint.load import load_model
from reasoning.engine import Engine
from reasoning.engine.config import EngineConfig
from reasoning.engine.trace import Trace
from reasoning.request import Completion, Delta, Request, RequestFailure, SamplingParams
from reasoning.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def parts(tiny_dir):
    return load_model(tiny_dir), Tokenizer.from_file(tiny_dir), LocalMemory.load(tiny_dir / "memory")


@pytest.fixture
def engine(parts):
    return Engine(*parts, EngineConfig(max_batch=4))


def ask(name, tokens=6, stream=False):
    return Request(name, name, sampling=SamplingParams(max_new_tokens=tokens, ignore_eos=True), stream=stream)


@pytest.fixture
def alone(parts):
    """Function that returns what a request gets on an engine of its own."""

    def run(request):
        (result,) = Engine(*parts).generate([request])
        return result

    return run


def check_empty(engine):
    engine.check_integrity()
    assert engine.idle
    assert engine.scheduler.pool.available == engine.scheduler.pool.size
    assert not engine.scheduler.fetches


def test_closing_an_iteration_cancels_what_it_has_added(engine, alone):
    results = engine.generate([ask("short", 2), ask("long", 30), ask("longer", 40)])
    assert next(results).id == "short"
    assert not engine.idle
    results.close()
    check_empty(engine)
    assert list(engine.generate([ask("next")])) == [alone(ask("next"))]
    assert list(engine.generate([ask("long", 3)])) == [alone(ask("long", 3))]  # its id is free again


def test_an_iteration_that_is_only_dropped_is_cancelled_too(engine):
    assert next(engine.events([ask("a", 30, stream=True)])).id == "a"
    check_empty(engine)


def test_an_exception_in_the_consumer_cancels_what_is_left(engine):
    def consume():
        for result in engine.generate([ask("short", 2), ask("long", 30)]):
            raise KeyError(result.id)

    with pytest.raises(KeyError, match="short"):
        consume()
    check_empty(engine)


def test_an_exception_in_the_iterator_of_requests_cancels_what_it_gave(engine, alone):
    def requests():
        yield ask("a", 30)
        yield ask("b", 30)
        raise OSError("the file went away")

    with pytest.raises(OSError, match="went away"):
        list(engine.generate(requests()))
    check_empty(engine)
    assert list(engine.generate([ask("next")])) == [alone(ask("next"))]


def test_iterations_that_take_turns_get_the_events_of_their_own_requests(engine, alone):
    first = engine.events([ask("a", 9, stream=True), ask("b", 2), ask("c", 5)])
    second = engine.events([ask("d", 7, stream=True), ask("e", 3, stream=True)])
    seen = {"first": [], "second": []}
    turns = itertools.zip_longest(first, second)
    for events in turns:
        for name, event in zip(seen, events, strict=True):
            if event is not None:
                seen[name].append(event)
        engine.check_integrity()
    for name, ids in (("first", "abc"), ("second", "de")):
        assert {event.id for event in seen[name]} == set(ids)
        finished = {event.id: event for event in seen[name] if isinstance(event, Completion)}
        for request in (ask("a", 9), ask("b", 2), ask("c", 5), ask("d", 7), ask("e", 3)):
            if request.id in ids:
                assert finished[request.id] == alone(request)
        for stream in set(ids) & set("ade"):
            deltas = [event for event in seen[name] if isinstance(event, Delta) and event.id == stream]
            assert sum((delta.token_ids for delta in deltas), ()) == finished[stream].token_ids
    check_empty(engine)


def test_an_iteration_inside_another_leaves_it_its_results(engine, alone):
    outer = [ask("a", 4), ask("b", 8)]
    results = []
    for result in engine.generate(outer):
        results.append(result)
        inner = ask(f"about {result.id}", 12)
        assert list(engine.generate([inner])) == [alone(inner)]
    assert results == [alone(request) for request in outer]
    check_empty(engine)


def test_an_iteration_that_is_put_aside_is_not_seen_by_the_next(engine, alone):
    aside = engine.generate([ask("short", 2), ask("a", 20)])
    assert next(aside).id == "short"
    assert list(engine.generate([ask("b", 25)])) == [alone(ask("b", 25))]
    assert engine.idle  # "a" has ended meanwhile
    assert list(aside) == [alone(ask("a", 20))]


def test_requests_that_were_added_directly_come_with_any_iteration(engine, alone):
    engine.add(ask("a", 3))
    assert {result.id: result for result in engine.generate([])} == {"a": alone(ask("a", 3))}


def test_a_step_from_outside_leaves_an_iteration_its_results(engine, alone):
    results = engine.generate([ask("short", 2), ask("a", 9)])
    assert next(results).id == "short"
    engine.add(ask("b", 12))
    events = [event for _ in range(30) for event in engine.step()]
    assert events == [alone(ask("b", 12))]
    assert list(results) == [alone(ask("a", 9))]


def test_a_request_that_is_cancelled_does_not_keep_its_iteration_waiting(engine):
    results = engine.generate([ask("short", 2), ask("a", 30)])
    assert next(results).id == "short"
    assert engine.cancel("a").choices[0].finish_reason == "cancelled"
    assert list(results) == []
    check_empty(engine)


def test_an_id_that_another_iteration_uses_is_refused_where_it_is_given(engine, alone):
    first = engine.generate([ask("short", 2), ask("a", 9)])
    assert next(first).id == "short"
    (failure,) = engine.generate([ask("a", 4)])
    assert (failure.id, failure.field) == ("a", "id")
    assert list(first) == [alone(ask("a", 9))]


def test_refused_requests_without_end_are_handed_out_as_they_are_read(engine):
    bad = (Request(str(number), "") for number in itertools.count())
    results = engine.generate(bad)
    assert [(result.id, result.field) for result in itertools.islice(results, 3)] == [(n, "prompt") for n in "012"]
    assert next(bad).id == "3"
    results.close()
    check_empty(engine)


def test_an_iteration_that_the_garbage_collector_closes_within_a_step_is_cancelled_after_it(parts, alone):
    class Collecting(Trace):
        """Collects garbage while a step is under way."""

        def model(self, pieces, output):
            gc.collect()
            super().model(pieces, output)

    engine = Engine(*parts, EngineConfig(max_batch=4), Collecting())
    gc.disable()
    try:
        results = engine.generate([ask("short", 2), ask("a", 30), ask("b", 30, stream=True)])
        assert next(results).id == "short"
        cycle = [results]
        cycle.append(cycle)
        del results, cycle
        engine.add(ask("c", 9))
        assert engine.step() == []
        assert len(engine.scheduler.running) == 1
        engine.check_integrity()
        assert list(engine.generate([])) == [alone(ask("c", 9))]
    finally:
        gc.enable()
    check_empty(engine)


def test_failures_go_to_the_iteration_whose_requests_failed(parts, alone):
    class Broken:
        """A memory that fails from some lookup on."""

        def __init__(self, memory):
            self.memory, self.specs, self.works = memory, memory.specs, True

        def lookup(self, table, rows, timeout_s=None):
            if not self.works:
                raise ShardUnavailable("gone")
            return self.memory.lookup(table, rows, timeout_s)

    model, tokenizer, memory = parts
    broken = Broken(memory)
    engine = Engine(model, tokenizer, broken, EngineConfig(max_batch=4))
    first, second = engine.generate([ask("short", 2), ask("a", 30)]), engine.generate([ask("tiny", 2), ask("b", 30)])
    assert (next(first).id, next(second).id) == ("short", "tiny")
    broken.works = False
    for results, name in ((first, "a"), (second, "b")):
        (failure,) = results
        assert isinstance(failure, RequestFailure)
        assert (failure.id, failure.field) == (name, "memory")
    check_empty(engine)
