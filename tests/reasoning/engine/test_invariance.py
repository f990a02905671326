"""The same request gives the same tokens, whatever the engine's settings, its neighbours, and what is cancelled."""

from __future__ import annotations

import copy
import dataclasses
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory_service import LocalMemory
from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.engine import Engine
from reasoning.engine.config import EngineConfig
from reasoning.engram.model_hasher import build_hasher, table_specs
from reasoning.request import Completion, Request, SamplingParams
from reasoning.text.tokenizer import Tokenizer
from tests.reasoning.conftest import TINY, TINY_ENGRAM, byte_tokenizer, random_model, random_rows

SYSTEM = "You are a careful model and answer in as few words as the question allows, no more and never any less. "
PROMPTS = ["a", SYSTEM, SYSTEM + "Why?", SYSTEM * 2, SYSTEM + "Who was it?", "é😀" * 20, "x" * 64, "def f(x):" * 8]


class LateMemory:
    """Answers each lookup after a moment, in no particular order."""

    def __init__(self, memory):
        self.memory, self.specs = memory, memory.specs
        self._random = random.Random(0)
        self._pool = ThreadPoolExecutor(4)

    def lookup(self, table, rows, timeout_s=None):
        delay = self._random.choice((0, 0, 0.001, 0.003))

        def answer():
            time.sleep(delay)
            return self.memory.lookup(table, rows, timeout_s).result()

        return self._pool.submit(answer)

    def stats(self):
        return self.memory.stats()


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A model whose context spans several pages, its tokenizer, and its memory in two tempers."""
    config = DeepseekV3Config.from_dict(
        {**TINY, **TINY_ENGRAM, "max_position_embeddings": 320, "num_nextn_predict_layers": 1}
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    byte_tokenizer().save(str(path))
    tokenizer = Tokenizer.from_file(path.parent)
    tables = {spec: random_rows(spec) for spec in table_specs(config.engram, build_hasher(config.engram, tokenizer))}
    memory = LocalMemory(tables)
    return random_model(config), tokenizer, {"at once": memory, "late": LateMemory(memory)}


def sampling(number):
    """How request `number` samples: greedy and seeded by turns, some of them with two samples."""
    more = {"temperature": 0.8, "top_p": 0.9, "seed": number, "repetition_penalty": 1.1} if number % 2 else {}
    return SamplingParams(max_new_tokens=20, ignore_eos=True, n=2 if number % 4 == 3 else 1, **more)


def request(number):
    return Request(str(number), PROMPTS[number], sampling=sampling(number))


@pytest.fixture(scope="module")
def expected(parts):
    """Every request alone, with nothing cached, nothing ahead of need and no chunks."""
    model, tokenizer, memories = parts
    found = {}
    for number in range(len(PROMPTS)):
        config = EngineConfig(max_batch=1, prefix_cache=False, overlap=False, drafts="none")
        (found[number],) = Engine(model, tokenizer, memories["at once"], config).generate([request(number)])
    return {number: [choice.token_ids for choice in result.choices] for number, result in found.items()}


def engine_of(model, tokenizer, memory, config, expected):
    """An engine; its drafts, if "scripted", are right for a while and then wrong, so that all cases occur."""
    if config.drafts != "scripted":
        return Engine(model, tokenizer, memory, EngineConfig(**config_fields(config)))
    engine = Engine(model, tokenizer, memory, EngineConfig(**{**config_fields(config), "drafts": "none"}))

    def script(sequence):
        right = expected[int(sequence.request.id)][sequence.index][len(sequence.new_tokens) :]
        length = len(sequence.token_ids) % 5
        drafts = [*right[: length // 2 + 1], *(7 for _ in range(length // 2))][:length]
        return drafts[: max(0, sequence.limit - len(sequence.token_ids) - 1)]

    engine.scheduler._draft = script
    return engine


def config_fields(config):
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


configurations = st.builds(
    EngineConfig,
    max_batch=st.sampled_from([1, 2, 3, 8]),
    prefill_tokens=st.sampled_from([1, 7, 64, 1000]),
    cache_tokens=st.sampled_from([320, 448, 2048]),
    prefix_cache=st.booleans(),
    cohorts=st.sampled_from([None, 1, 2]),
    drafts=st.sampled_from(["none", "ngram", "mtp", "scripted"]),
) | st.builds(EngineConfig, max_batch=st.sampled_from([1, 3]), overlap=st.just(False))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    config=configurations,
    temper=st.sampled_from(["at once", "late"]),
    plan=st.lists(
        st.tuples(st.sampled_from(["add", "add", "add", "step", "cancel"]), st.integers(0, len(PROMPTS) - 1)),
        max_size=14,
    ),
)
def test_tokens_depend_on_the_request_alone(parts, expected, config, temper, plan):
    model, tokenizer, memories = parts
    engine = engine_of(model, tokenizer, memories[temper], config, expected)
    results, live = {}, set()

    def take(events):
        for event in events:
            results[event.id] = event
            live.discard(event.id)
        engine.check_integrity()

    for action, number in plan:
        if action == "add" and str(number) not in live:
            engine.add(request(number))
            live.add(str(number))
        elif action == "step":
            take(engine.step())
        elif action == "cancel":
            cancelled = engine.cancel(str(number))
            assert (cancelled is not None) == (str(number) in live)
            if cancelled is not None:
                live.discard(str(number))
                for choice, tokens in zip(cancelled.choices, expected[number], strict=True):
                    assert choice.token_ids == tokens[: len(choice.token_ids)]
    while not engine.idle:
        take(engine.step())
    engine.check_integrity()
    assert not live
    assert engine.scheduler.pool.available == engine.scheduler.pool.size
    for name, result in results.items():
        assert isinstance(result, Completion)
        assert [choice.token_ids for choice in result.choices] == expected[int(name)]


def test_every_accepted_draft_saves_a_step(parts, expected):
    model, tokenizer, memories = parts
    steps = {}
    for drafts in ("none", "scripted"):
        config = EngineConfig(max_batch=1, drafts=drafts)
        engine = engine_of(model, tokenizer, memories["at once"], config, expected)
        (result,) = engine.generate([request(2)])
        assert result.token_ids == expected[2][0]
        steps[drafts] = engine.stats().steps
    stats = engine.stats()
    assert stats.drafted_tokens > stats.accepted_tokens > 0
    assert steps["scripted"] == steps["none"] - stats.accepted_tokens


def test_drafts_predict_a_text_that_repeats_itself(parts):
    model, tokenizer, memories = parts
    flat = copy.deepcopy(model)
    torch.nn.init.zeros_(flat.lm_head.weight)  # every logit is 0: the first token wins for ever
    for kind in ("ngram", "mtp"):
        engine = Engine(flat, tokenizer, memories["at once"], EngineConfig(drafts=kind))
        (result,) = engine.generate([request(0)])
        assert len(set(result.token_ids)) == 1
        assert engine.stats().accepted_tokens > 5, kind


def test_a_reused_prefix_is_not_computed_again(parts, expected):
    model, tokenizer, memories = parts
    engine = Engine(model, tokenizer, memories["at once"])
    cached = []
    for number in (1, 2, 4, 3):
        (result,) = engine.generate([request(number)])
        assert result.token_ids == expected[number][0]
        cached.append(result.cached_tokens)
    assert cached == [0, 64, 64, 64]
    assert engine.stats().reused_tokens >= 192


def test_preemption_for_lack_of_pages_changes_no_tokens(parts, expected):
    model, tokenizer, memories = parts
    config = EngineConfig(max_batch=4, cache_tokens=384, prefix_cache=False, prefill_tokens=1000)
    engine = Engine(model, tokenizer, memories["at once"], config)
    numbers = [0, 6, 7, 5]  # each fits with the others at first, and grows over the end of its page
    results = {int(r.id): [c.token_ids for c in r.choices] for r in engine.generate(map(request, numbers))}
    assert results == {number: expected[number] for number in numbers}
    assert engine.stats().preemptions > 0


def test_deltas_joined_are_the_choices_of_the_completion(parts):
    model, tokenizer, memories = parts
    engine = Engine(model, tokenizer, memories["at once"])
    hot = [SamplingParams(max_new_tokens=20, n=2, seed=n, temperature=1.0) for n in range(3)]
    group = [Request(str(n), PROMPTS[n], sampling=hot[n], stream=True) for n in range(3)]
    *deltas, last = engine.events(group)
    streamed = {}
    for event in [*deltas, last]:
        if isinstance(event, Completion):
            for choice in event.choices:
                text, ids = streamed[event.id, choice.index]
                assert (text, ids) == (choice.text, choice.token_ids)
        else:
            text, ids = streamed.get((event.id, event.index), ("", ()))
            streamed[event.id, event.index] = (text + event.text, ids + event.token_ids)
    assert isinstance(last, Completion)
    assert len(deltas) > 20


def test_a_full_queue_refuses_and_generate_waits_for_room(parts, expected):
    model, tokenizer, memories = parts
    config = EngineConfig(max_batch=1, max_queue=2)
    engine = Engine(model, tokenizer, memories["at once"], config)
    engine.add(request(0))
    engine.add(request(1))
    with pytest.raises(ValueError, match="queue: 2 sequences wait; try again later"):
        engine.add(request(2))
    with pytest.raises(ValueError, match="id: '1' is being served already"):
        engine.add(request(1))
    results = {r.id: r for r in engine.generate(request(n) for n in (2, 4, 6))}
    assert {int(name): r.token_ids for name, r in results.items()} == {n: expected[n][0] for n in (0, 1, 2, 4, 6)}


def test_a_cancelled_request_hands_back_what_it_has(parts, expected):
    model, tokenizer, memories = parts
    engine = Engine(model, tokenizer, memories["at once"])
    engine.add(request(2))
    for _ in range(4):
        engine.step()
    result = engine.cancel("2")
    assert result.choices[0].finish_reason == "cancelled"
    assert 0 < len(result.token_ids) < 20
    assert result.token_ids == expected[2][0][: len(result.token_ids)]
    assert engine.idle
    assert engine.cancel("2") is None
