"""What runs while rows travel: a memory that answers when the test says so, and no clock."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from memory_service import LocalMemory
from reasoning.checkpoint.load import load_model
from reasoning.engine import Engine
from reasoning.engine.config import EngineConfig
from reasoning.request import Completion, Request, SamplingParams
from reasoning.text.tokenizer import Tokenizer

LAYERS = 2  # with a memory: as many lookups belong together


class HeldMemory:
    """A memory that keeps its answers, where `holding`, until they are released."""

    def __init__(self, memory):
        self.memory, self.specs = memory, memory.specs
        self.holding = True
        self.asked = 0
        self.held = []

    def lookup(self, table, rows, timeout_s=None):
        self.asked += 1
        answer = self.memory.lookup(table, rows, timeout_s)
        if not self.holding:
            return answer
        late = Future()
        self.held.append((late, answer))
        return late

    def release(self, lookups=None):
        """Answer the oldest lookups, or all."""
        chosen, self.held = self.held[:lookups], self.held[len(self.held[:lookups]) :]
        for late, answer in chosen:
            late.set_result(answer.result())

    def stats(self):
        return self.memory.stats()


@pytest.fixture(scope="module")
def parts(tiny_dir):
    return load_model(tiny_dir), Tokenizer.from_file(tiny_dir), LocalMemory.load(tiny_dir / "memory")


@pytest.fixture
def start(parts):
    """An engine over a held memory."""

    def make(**config):
        model, tokenizer, memory = parts
        held = HeldMemory(memory)
        config = EngineConfig(drafts="none", lookup_timeout_s=20.0, **config)
        return Engine(model, tokenizer, held, config), held

    return make


@pytest.fixture
def expected(parts):
    """Tokens of a request that runs alone."""

    def tokens(request):
        model, tokenizer, memory = parts
        (done,) = Engine(model, tokenizer, memory).generate([request])
        return done.token_ids

    return tokens


def request(name, prompt, new_tokens=6):
    return Request(name, prompt, sampling=SamplingParams(max_new_tokens=new_tokens, ignore_eos=True))


def finish(engine, memory):
    """Let everything go; completions by id."""
    memory.holding = False
    memory.release()
    done = {}
    while not engine.idle:
        done |= {event.id: event for event in engine.step() if isinstance(event, Completion)}
        engine.check_integrity()
    return done


def lengths(engine):
    """New tokens of those who run."""
    return {sequence.request.id: len(sequence.new_tokens) for sequence in engine.scheduler.running}


def test_a_prompt_is_asked_for_on_arrival_and_the_next_token_before_the_step_returns(start):
    engine, memory = start()
    memory.holding = False
    engine.add(request("a", "def f"))
    assert memory.asked == LAYERS
    engine.step()
    assert memory.asked == 2 * LAYERS
    engine.step()
    assert memory.asked == 3 * LAYERS


def test_without_overlap_nothing_is_asked_for_ahead(start):
    engine, memory = start(overlap=False)
    memory.holding = False
    engine.add(request("a", "def f"))
    assert memory.asked == 0
    engine.step()
    assert memory.asked == LAYERS
    engine.step()
    assert memory.asked == 2 * LAYERS


def test_without_overlap_a_step_begins_when_all_its_rows_are_there(start, parts):
    engine, memory = start(overlap=False)
    engine.add(request("a", "def f"))
    seen = []
    waiting = engine.scheduler.take

    def take():
        memory.release()
        return waiting()

    engine.scheduler.take = take
    hook = parts[0].embed_tokens.register_forward_pre_hook(lambda *_: seen.append(len(memory.held)))
    engine.step()
    hook.remove()
    assert seen == [0]


def test_a_prompt_that_has_landed_runs_while_the_others_rows_travel(start, expected):
    engine, memory = start()
    engine.add(request("a", "x = 1"))
    memory.release()
    engine.step()
    memory.holding = False
    engine.add(request("b", "y"))
    engine.step()
    assert lengths(engine) == {"a": 1, "b": 1}
    done = finish(engine, memory)
    assert {name: result.token_ids for name, result in done.items()} == {
        "a": expected(request("a", "x = 1")),
        "b": expected(request("b", "y")),
    }


def test_a_stalled_prompt_does_not_stop_the_others(start, expected):
    engine, memory = start()
    engine.add(request("stalled", "import os"))
    memory.holding = False
    for name in "abc":
        engine.add(request(name, name))
    done = {}
    while len(done) < 3:
        done |= {event.id: event for event in engine.step()}
    assert {name: result.token_ids for name, result in done.items()} == {n: expected(request(n, n)) for n in "abc"}
    assert finish(engine, memory)["stalled"].token_ids == expected(request("stalled", "import os"))


def test_layers_before_the_rows_are_computed_while_they_travel(start, parts, expected):
    """Were they waited for at the beginning, nobody would release them."""
    model = parts[0]
    engine, memory = start()
    engine.add(request("a", "def f", new_tokens=1))
    held = []

    def release_next(*_):
        held.append(len(memory.held))
        memory.release(1)

    hooks = [part.register_forward_hook(release_next) for part in (model.embed_tokens, model.layers[1])]
    (done,) = engine.step()
    for hook in hooks:
        hook.remove()
    assert held == [LAYERS, LAYERS - 1]
    assert done.token_ids == expected(request("a", "def f", new_tokens=1))


def test_one_cohort_runs_on_while_the_rows_of_the_other_are_held(start, expected):
    engine, memory = start(cohorts=2)
    memory.holding = False
    for name in "abcd":
        engine.add(request(name, name))
    memory.holding = True
    engine.step()
    assert len(memory.held) == 2 * LAYERS  # one lookup for each cohort
    first = {sequence.request.id for sequence in engine.scheduler.running if sequence.cohort == 0}
    assert len(first) == 2
    for steps in (1, 2):
        memory.holding = False  # its next rows come at once
        memory.release(LAYERS if steps == 1 else 0)
        engine.step()
        assert lengths(engine) == {name: 1 + steps * (name in first) for name in "abcd"}
    done = finish(engine, memory)
    assert {name: result.token_ids for name, result in done.items()} == {n: expected(request(n, n)) for n in "abcd"}


def test_cancelling_lets_go_of_rows_that_travel(start, expected):
    engine, memory = start()
    for name in "ab":
        engine.add(request(name, name))
    engine.cancel("a")
    engine.check_integrity()
    assert {name: result.token_ids for name, result in finish(engine, memory).items()} == {
        "b": expected(request("b", "b"))
    }
