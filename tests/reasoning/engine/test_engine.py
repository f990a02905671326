"""Requests in, completions out: the same tokens whatever the batch, and errors that concern only their request."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from kernels.row_unpack import row_unpack
from memory_service import LocalMemory
from reasoning.checkpoint.load import load_model
from reasoning.engine import Engine
from reasoning.engine.config import EngineConfig
from reasoning.engram.model_hasher import build_hasher, table_specs
from reasoning.model.batch import Batch
from reasoning.request import Choice, Completion, Request, RequestFailure, SamplingParams
from reasoning.text.tokenizer import Tokenizer
from tests.reasoning.conftest import END

PROMPTS = ["a", "import math", "def f(x):\n    return", "é😀", "x" * 40, "aaaaaaab", "# a", "while True:"]


def requests(prompts=PROMPTS, **sampling):
    params = SamplingParams(**{"max_new_tokens": 12, "ignore_eos": True, **sampling})
    return [Request(str(number), prompt, sampling=params) for number, prompt in enumerate(prompts)]


def run(engine, group):
    """Results by request id."""
    results = list(engine.generate(group))
    assert sorted(result.id for result in results) == sorted(request.id for request in group)
    assert engine.scheduler.idle
    return {result.id: result for result in results}


@pytest.fixture
def engine(tiny_dir):
    made = Engine.from_pretrained(tiny_dir)
    yield made
    made.close()


@pytest.fixture(scope="module")
@torch.inference_mode()
def recomputed(tiny_dir):
    """Greedy tokens of each prompt, every token from the whole sequence anew: no cache, no engine."""
    model, memory, tokenizer = (
        load_model(tiny_dir),
        LocalMemory.load(tiny_dir / "memory"),
        Tokenizer.from_file(tiny_dir),
    )
    hasher = build_hasher(model.config.engram, tokenizer)
    specs = {spec.layer: spec for spec in table_specs(model.config.engram, hasher)}

    def embeddings(ids, layer):
        rows = memory.lookup(specs[layer].name, hasher.hash(ids)[layer]).result()
        packed, inverse = torch.from_numpy(rows.unique), torch.from_numpy(rows.inverse)
        return row_unpack(packed, inverse, model.config.engram.row_format, model.config.engram.head_dim).flatten(1)

    expected = {}
    for number, prompt in enumerate(PROMPTS):
        ids = tokenizer.encode(prompt)
        for _ in range(12):
            hidden = model(Batch.of_whole_sequences(torch.tensor([ids])), lambda layer, ids=ids: embeddings(ids, layer))
            ids.append(int(model.logits(hidden[-1:]).argmax()))
        expected[str(number)] = tuple(ids[-12:])
    return expected


@pytest.mark.parametrize("max_batch", [1, 3, 16])
def test_greedy_tokens_are_those_of_full_recomputation(tiny_dir, recomputed, max_batch):
    engine = Engine.from_pretrained(tiny_dir, config=EngineConfig(max_batch=max_batch, prefill_tokens=30))
    together = run(engine, requests())
    assert {name: result.token_ids for name, result in together.items()} == recomputed
    assert len({token for tokens in recomputed.values() for token in tokens}) > 20  # no model that repeats itself
    alone = {}
    for request in reversed(requests()):
        alone |= run(engine, [request])
    assert alone == together
    engine.close()


def test_other_rows_in_the_memory_give_other_tokens(tiny_dir, recomputed):
    memory = LocalMemory.load(tiny_dir / "memory")
    zeros = LocalMemory({s: np.zeros((s.rows, s.row_bytes), np.uint8) for s in memory.specs.values()})
    results = run(Engine.from_pretrained(tiny_dir, zeros), requests())
    assert all(results[name].token_ids != tokens for name, tokens in recomputed.items())


def test_a_completion_says_what_happened(engine, recomputed):
    tokenizer = engine.tokenizer
    result = run(engine, requests(["import math"]))["0"]
    choice = Choice(0, tokenizer.decode(recomputed["1"]), recomputed["1"], "length")
    assert result == Completion("0", (choice,), len(tokenizer.encode("import math")))
    ids = tuple(tokenizer.encode("import math"))
    by_ids = Request("0", prompt_token_ids=ids, sampling=SamplingParams(max_new_tokens=12, ignore_eos=True))
    assert run(engine, [by_ids])["0"] == result


def test_results_come_as_they_finish(engine):
    lengths = {"long": 9, "short": 2, "middle": 5}
    group = [
        Request(name, "a", sampling=SamplingParams(max_new_tokens=n, ignore_eos=True)) for name, n in lengths.items()
    ]
    results = list(engine.generate(group))
    assert [(result.id, len(result.token_ids)) for result in results] == [("short", 2), ("middle", 5), ("long", 9)]


def test_a_completion_ends_at_the_end_of_the_context(engine):
    prompt = tuple(range(60))
    result = run(engine, [Request("0", None, prompt, SamplingParams(max_new_tokens=50, ignore_eos=True))])["0"]
    assert (len(result.token_ids), result.prompt_tokens, result.finish_reason) == (4, 60, "length")


def test_an_end_token_stops_unless_it_is_ignored(engine, recomputed):
    tokens = recomputed["1"]
    end = next(token for token in tokens[2:] if tokens.index(token) >= 2)
    engine.model.config = dataclasses.replace(engine.model.config, eos_token_id=(END, end))
    stopped = run(engine, requests(["import math"], ignore_eos=False))["0"]
    assert (stopped.token_ids, stopped.finish_reason) == (tokens[: tokens.index(end) + 1], "stop")
    ignored = run(engine, requests(["import math"]))["0"]
    assert (ignored.token_ids, ignored.finish_reason) == (tokens, "length")


def test_a_seed_gives_its_tokens_whatever_the_batch(tiny_dir):
    def sampled(max_batch, group):
        return run(Engine.from_pretrained(tiny_dir, config=EngineConfig(max_batch=max_batch)), group)

    def seeded(order):
        params = {"temperature": 1.0, "top_p": 0.95, "top_k": 50, "max_new_tokens": 12, "ignore_eos": True}
        return [Request(str(n), PROMPTS[n], sampling=SamplingParams(seed=n, **params)) for n in order]

    together = sampled(16, seeded(range(8)))
    assert sampled(1, seeded([5, 2])) == {name: together[name] for name in "52"}
    assert sampled(3, seeded([7, 1, 0, 5])) == {name: together[name] for name in "7105"}
    assert together["0"].token_ids != run(Engine.from_pretrained(tiny_dir), requests())["0"].token_ids


def test_counters_agree_with_the_results_and_lookups(engine):
    results = run(engine, requests())
    stats = engine.stats()
    assert stats.prompt_tokens == sum(result.prompt_tokens for result in results.values())
    assert stats.output_tokens == 8 * 12
    assert stats.busy_s > stats.waited_s > 0
    assert stats.memory.lookups == 2 * (8 + 11)  # two layers: each prompt, then all together
    assert stats.memory.rows == 2 * 4 * (stats.prompt_tokens + 8 * 11)


def test_a_model_without_engram_needs_neither_tokenizer_nor_memory(plain_dir):
    engine = Engine.from_pretrained(plain_dir, memory="nowhere:1")  # not even asked for
    params = SamplingParams(max_new_tokens=6, ignore_eos=True)
    result = run(engine, [Request("0", prompt_token_ids=(1, 2, 3), sampling=params)])["0"]
    assert (len(result.token_ids), result.text, result.prompt_tokens) == (6, "", 3)
    refused = run(engine, [Request("1", "text")])["1"]
    assert refused == RequestFailure("1", "prompt", "this model has no tokenizer.json; give prompt_token_ids instead")
    assert engine.stats().memory is None
    engine.close()
