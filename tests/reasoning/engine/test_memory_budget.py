from __future__ import annotations

import logging

import pytest

from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.engine import Engine, EngineConfig
from reasoning.engine.memory_budget import CacheBudget, Room, cache_budget
from reasoning.request import Completion, Request, SamplingParams
from tests.reasoning.conftest import TINY, random_model

PLENTY = Room(free_bytes=1 << 50, token_bytes=100)
POSITIONS = 163_840


def budget(room=PLENTY, positions=POSITIONS, **config):
    return cache_budget(EngineConfig(**config), positions, room)


def room_for(tokens, share=0.5):
    return Room(int(tokens * 100 / share), 100)


def test_the_context_is_the_models_own_and_the_cache_less_than_a_batch_of_it():
    assert budget() == CacheBudget(POSITIONS, (POSITIONS + 15 * 4096) // 64)
    assert budget(max_batch=1) == CacheBudget(POSITIONS, POSITIONS // 64)


def test_short_contexts_fit_for_every_sequence_of_a_batch():
    assert budget(positions=1000, max_batch=3) == CacheBudget(1000, 3 * 16)


def test_short_memory_shrinks_the_cache_first_and_then_the_context(caplog):
    assert budget(room_for(200_000)) == CacheBudget(POSITIONS, 3125)
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        assert budget(room_for(10_000)) == CacheBudget(9984, 156)
    said = "the context is 9,984 tokens of the model's 163,840, bounded by memory for 9,984 tokens (1.0 MiB: 0.5 of"
    assert said in caplog.text


def test_a_gpu_gives_more_of_its_memory_than_a_host():
    assert budget(Room(1_000_000, 100, gpu=True)).tokens == 8_000
    assert budget(Room(1_000_000, 100)).tokens == 4_992
    assert budget(Room(1_000_000, 100), cache_share=1).tokens == 9_984


def test_a_context_is_bounded_by_cache_tokens():
    assert budget(cache_tokens=1000) == CacheBudget(1024, 16)
    assert budget(cache_tokens=1000, max_context=1000) == CacheBudget(1000, 16)
    assert budget(cache_tokens=10, max_context=10) == CacheBudget(10, 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_context": 200_000}, r"max_context: 200,000 is more than the 163,840 positions of the model"),
        ({"max_context": 20_000}, r"max_context: 20,000 tokens do not fit into a cache of 9,984 tokens .*cache_share"),
        ({"max_context": 2_000, "cache_tokens": 500}, r"max_context: 2,000 is more than `cache_tokens`, 500"),
        ({"cache_tokens": 20_000}, r"cache_tokens: 20,000 are more than 9,984 tokens .*cache_share"),
        ({"cache_share": 0.001}, r"cache_share: the cache has room for 0 tokens .* less than a page of 64"),
    ],
)
def test_a_limit_that_does_not_fit_is_named_with_what_does(config, message):
    with pytest.raises(ValueError, match=message):
        budget(room_for(10_000), **config)


def test_an_engine_reports_its_context_and_cache(tiny_dir):
    stats = Engine.from_pretrained(tiny_dir, config=EngineConfig(max_batch=2)).stats()
    layers, engram_layers = 3, 2
    assert (stats.context, stats.model_context, stats.cache_tokens) == (64, 64, 128)
    assert stats.cache_bytes == 128 * 4 * (layers * (16 + 8) + engram_layers * 32)


def test_a_long_context_is_served_by_default_next_to_short_ones():
    engine = Engine(random_model(DeepseekV3Config.from_dict({**TINY, "max_position_embeddings": POSITIONS})))
    assert engine.stats().context == POSITIONS
    assert engine.stats().cache_tokens == POSITIONS + 15 * 4096
    sampling = SamplingParams(max_new_tokens=2, ignore_eos=True)
    requests = [Request(str(n), prompt_token_ids=(7,) * n, sampling=sampling) for n in (3, 6000, 200)]
    results = list(engine.generate(requests))
    assert {int(result.id) for result in results if isinstance(result, Completion)} == {3, 6000, 200}
