"""The timeline: what Perfetto needs, spans inside of each other, and times that add up to the engine's own."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import Future
from itertools import pairwise

import pytest

from memory_service import LocalMemory, ShardUnavailable
from reasoning.checkpoint.load import load_model
from reasoning.engine import Engine
from reasoning.engine.config import EngineConfig
from reasoning.engine.trace import Trace
from reasoning.request import Request, RequestFailure, SamplingParams
from reasoning.text.tokenizer import Tokenizer

PROMPTS = {"a": "import os\n" * 4, "b": "def f(x):", "c": "#"}
PARTS = ["ask", "wait for rows", "model", "choose"]


def traced(tiny_dir, path, config=None, memory=None):
    """Run PROMPTS; the events, and the engine."""
    trace = Trace()
    engine = Engine.from_pretrained(tiny_dir, memory, config, trace)
    sampling = SamplingParams(max_new_tokens=5, ignore_eos=True)
    results = list(engine.generate(Request(name, text, sampling=sampling) for name, text in PROMPTS.items()))
    trace.write(path)
    return json.loads(path.read_text())["traceEvents"], engine, results


@pytest.fixture(scope="module")
def run(tiny_dir, tmp_path_factory):
    config = EngineConfig(drafts="none", prefill_tokens=16, cohorts=1)
    return traced(tiny_dir, tmp_path_factory.mktemp("trace") / "out.json", config)


def spans(events, *names):
    return [event for event in events if event["ph"] == "X" and (not names or event["name"] in names)]


def steps(events):
    return [event for event in spans(events) if "tokens" in event["args"]]


def inside(outer, events):
    begin, end = outer["ts"] - 0.2, outer["ts"] + outer["dur"] + 0.2  # times are rounded to a tenth of a microsecond
    return [event for event in events if begin <= event["ts"] and event["ts"] + event["dur"] <= end]


def test_processes_and_threads_have_names_and_every_event_belongs_to_one(run):
    events, _, _ = run
    assert [(e["name"], e["args"]["name"]) for e in events if e["ph"] == "M"] == [
        ("process_name", "engram"),
        ("thread_name", "engine"),
    ]
    assert len({(event["pid"], event["tid"]) for event in events}) == 1
    assert {event["ph"] for event in events} == {"M", "X", "b", "e"}


def test_every_step_is_named_by_what_it_ran(run):
    events, engine, _ = run
    stats = engine.stats()
    ran = steps(events)
    assert len(ran) == stats.steps
    assert {event["name"] for event in ran} == {"prompts", "cohort 0", "cohort 0 + prompts"}
    assert sum(event["args"]["prompt tokens"] for event in ran) == stats.prompt_tokens
    assert sum(event["args"]["tokens"] for event in ran) == stats.prompt_tokens + stats.output_tokens - len(PROMPTS)
    assert max(event["args"]["sequences"] for event in ran) == len(PROMPTS)


def test_a_step_is_made_of_its_parts_in_order_and_waits_lie_in_its_model(run):
    events, _, _ = run
    for step in steps(events):
        parts = sorted(inside(step, spans(events, *PARTS)), key=lambda part: part["ts"])
        assert [part["name"] for part in parts] == PARTS
        for part, following in pairwise(parts):
            assert part["ts"] + part["dur"] <= following["ts"] + 0.2
        assert sum(part["dur"] for part in parts) <= step["dur"] + 0.8
        waits = inside(parts[2], spans(events, "wait for rows of layer 0", "wait for rows of layer 2"))
        assert [wait["name"][-1] for wait in waits] == ["0", "2"]


def test_times_are_those_the_engine_counts(run):
    events, engine, _ = run
    stats = engine.stats()
    waits = [event for event in spans(events) if event["name"].startswith("wait")]
    assert sum(event["dur"] for event in waits) == pytest.approx(stats.waited_s * 1e6, abs=0.1 * len(waits))
    assert sum(event["dur"] for event in steps(events)) >= stats.busy_s * 1e6


def test_every_lookup_begins_and_ends_once_in_each_layer(run):
    events, engine, _ = run
    begun = {event["id"]: event for event in events if event["ph"] == "b"}
    ended = {event["id"]: event for event in events if event["ph"] == "e"}
    assert begun.keys() == ended.keys()
    assert len(begun) == engine.stats().memory.lookups
    assert all(begun[number]["ts"] <= ended[number]["ts"] for number in begun)
    assert {event["cat"] for event in begun.values()} == {"lookup"}
    tokens = Counter()
    for event in begun.values():
        tokens[event["name"], event["args"]["for"]] += event["args"]["tokens"]
    prompts = {f"prompt of {name}": len(text) for name, text in PROMPTS.items()}
    for layer in (0, 2):
        decoded = 4 * len(PROMPTS)  # the first new token of a prompt comes with its prompt
        assert tokens == tokens | {(f"rows of layer {layer}", owner): n for owner, n in prompts.items()}
        assert tokens[f"rows of layer {layer}", "cohort 0"] == decoded


def test_a_lookup_that_fails_shows_why(tiny_dir, tmp_path):
    class Lost(LocalMemory):
        def lookup(self, table, rows, timeout_s=None):
            if table == "engram.0":
                return super().lookup(table, rows, timeout_s)
            failed = Future()
            failed.set_exception(ShardUnavailable("shard-1 went away"))
            return failed

    memory = LocalMemory.load(tiny_dir / "memory")
    memory.__class__ = Lost
    events, _, results = traced(tiny_dir, tmp_path / "out.json", memory=memory)
    assert {type(result) for result in results} == {RequestFailure}
    failed = spans(events, "failed")
    assert len(failed) == len(PROMPTS)
    assert all("shard-1 went away" in event["args"]["error"] for event in failed)


def test_without_a_trace_the_results_are_the_same(tiny_dir, run):
    _, _, results = run
    engine = Engine(load_model(tiny_dir), Tokenizer.from_file(tiny_dir), LocalMemory.load(tiny_dir / "memory"))
    sampling = SamplingParams(max_new_tokens=5, ignore_eos=True)
    plain = list(engine.generate(Request(name, text, sampling=sampling) for name, text in PROMPTS.items()))
    assert {result.id: result for result in plain} == {result.id: result for result in results}
