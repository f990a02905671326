"""The steps that kernels are tuned on: as large as the engine's limits allow, within the cache."""

from __future__ import annotations

import pytest
import torch

from reasoning.architectures.deepseek_v3.cache import LatentCache
from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.engine.warm_up import warm_up
from reasoning.model.batch import PAGE_TOKENS, pages_for
from tests.reasoning.conftest import TINY, TINY_ENGRAM, random_model


def ran(pages, **limits):
    """The batches that were run on a cache of so many pages and one for padding."""
    cache, batches = LatentCache(torch.zeros(1, pages + 1, PAGE_TOKENS, 8)), []

    def forward(batch, rows, cache):
        assert rows(0).shape == (sum(batch.lengths), 24)
        batches.append(batch)

    warm_up(forward, cache, 24, **limits)
    for batch in batches:
        held = [page for own in batch.pages for page in own]
        assert len(set(held)) == len(held)
        assert max(held) < pages
        for own, start, length in zip(batch.pages, batch.starts, batch.lengths, strict=True):
            assert len(own) == pages_for(start + length)
    return batches


@pytest.mark.parametrize(
    ("pages", "prompt_tokens", "sequences", "context", "prompts", "decoding"),
    [
        (64, 2048, 16, 4096, [2048], [255] * 16),
        (64, 2048, 4, 700, [700, 700], [699] * 4),
        (2, 2048, 16, 4096, [128], [63, 63]),
        (10, 5, 3, 90, [5], [89] * 3),
    ],
)
def test_steps_are_as_large_as_limits_and_cache_allow(pages, prompt_tokens, sequences, context, prompts, decoding):
    first, second = ran(pages, prompt_tokens=prompt_tokens, sequences=sequences, context=context)
    assert (list(first.lengths), set(first.starts)) == (prompts, {0})
    assert (list(second.starts), set(second.lengths)) == (decoding, {1})


def test_a_model_runs_the_steps_and_leaves_the_last_page():
    config = DeepseekV3Config.from_dict({**TINY, **TINY_ENGRAM, "max_position_embeddings": 128})
    cache = LatentCache.empty(config, 5)
    warm_up(random_model(config), cache, config.engram.width, 100, 3, 128)
    assert cache.latents[:, 0].any()
    assert not cache.latents[:, 4].any()
