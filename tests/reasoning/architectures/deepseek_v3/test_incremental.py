"""Whatever the chunks, the pages, and who else is in the batch: a sequence comes out as when it is computed at once."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from reasoning.architectures.deepseek_v3.backbone import DeepseekV3Backbone
from reasoning.architectures.deepseek_v3.cache import LatentCache
from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.model.batch import PAGE_TOKENS, Batch
from tests.reasoning.architectures.deepseek_v3.conftest import SMALL

ENGRAM = {"engram_layer_ids": [0, 2], "engram_n_heads": 2, "engram_head_dim": 16, "engram_vocab_size": 101}
LENGTH = 2 * PAGE_TOKENS + 12
PAGES = (5, 0, 3), (2, 4, 1)  # of two sequences: scattered, and together all but one of seven


def build(gate: str = "sqrt", conv_kernel: int = 4) -> DeepseekV3Backbone:
    config = DeepseekV3Config.from_dict({**SMALL, **ENGRAM, "engram_gate": gate, "engram_conv_kernel": conv_kernel})
    model = DeepseekV3Backbone(config).initialise(torch.Generator().manual_seed(1)).eval()
    for layer in model.layers:
        if layer.engram is not None and layer.engram.conv is not None:
            torch.nn.init.normal_(layer.engram.conv.weight, 0, 0.3)  # zero, as initialised, would hide the convolution
    return model


def poisoned(model: DeepseekV3Backbone, pages: int = 7) -> LatentCache:
    """A cache in which reading what was never written gives NaN."""
    cache = LatentCache.empty(model.config, pages)
    for tensor in (cache.latents, *cache.conv.values()):
        tensor.fill_(float("nan"))
    return cache


class Sequence:
    """Random tokens and their rows, and the hidden states that the model gives them at once."""

    def __init__(self, model: DeepseekV3Backbone, length: int, pages: tuple[int, ...]):
        self.model, self.pages = model, pages
        self.ids = torch.randint(0, SMALL["vocab_size"], (length,))
        self.rows = {layer: torch.randn(length, model.config.engram.width) for layer in model.config.engram.layer_ids}
        self.whole = model(Batch.of_whole_sequences(self.ids[None]), self.rows.__getitem__)


def run(pieces: list[tuple[Sequence, int, int]], cache: LatentCache) -> tuple[torch.Tensor, ...]:
    """Hidden states of tokens start..end of each sequence, all computed as one batch."""
    batch = Batch(
        torch.cat([s.ids[start:end] for s, start, end in pieces]),
        lengths=tuple(end - start for _, start, end in pieces),
        starts=tuple(start for _, start, _ in pieces),
        pages=tuple(s.pages for s, _, _ in pieces),
    )
    hidden = pieces[0][0].model(
        batch, lambda layer: torch.cat([s.rows[layer][start:end] for s, start, end in pieces]), cache
    )
    return hidden.split(batch.lengths)


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=3e-5, rtol=0)


@pytest.mark.parametrize("gate", ["sqrt", "sigmoid"])
@pytest.mark.parametrize("conv_kernel", [0, 4])
@pytest.mark.parametrize("sizes", [(1,), (7, 1, 20, 12), (LENGTH - 1, 1), (3, 77), (64,)], ids=str)
@torch.inference_mode()
def test_chunks_in_scattered_pages_equal_the_whole(gate, conv_kernel, sizes):
    model = build(gate, conv_kernel)
    sequences = [Sequence(model, LENGTH, pages) for pages in PAGES]
    cache, start, turn = poisoned(model), 0, 0
    while start < LENGTH:
        end = min(start + sizes[turn % len(sizes)], LENGTH)
        for sequence, hidden in zip(sequences, run([(s, start, end) for s in sequences], cache), strict=True):
            assert_same(hidden, sequence.whole[start:end])
        start, turn = end, turn + 1


@torch.inference_mode()
def test_prompt_chunks_single_tokens_and_drafts_share_a_batch():
    model = build()
    cache = poisoned(model, pages=12)
    pages = (9, 7), (3,), (11, 0, 6), (4, 1, 10), (2, 8)
    spans = (60, 100), (0, 30), (139, 140), (70, 74), (64, 65)  # a chunk, a prompt, two decoding, one with drafts
    sequences = [Sequence(model, end, own) for (_, end), own in zip(spans, pages, strict=True)]
    for sequence, (start, _) in zip(sequences, spans, strict=True):
        if start:
            run([(sequence, 0, start)], cache)
    together = run([(s, *span) for s, span in zip(sequences, spans, strict=True)], cache)
    for sequence, hidden, (start, _) in zip(sequences, together, spans, strict=True):
        assert_same(hidden, sequence.whole[start:])


@torch.inference_mode()
def test_rejected_drafts_leave_no_trace():
    model = build()
    cache = poisoned(model)
    taken, drafted = Sequence(model, 70, PAGES[0]), Sequence(model, 70, PAGES[0])
    run([(taken, 0, 62)], cache)
    run([(drafted, 62, 68)], cache)  # over the end of a page
    assert_same(run([(taken, 62, 63)], cache)[0], taken.whole[62:63])
    assert_same(run([(taken, 63, 70)], cache)[0], taken.whole[63:])


@torch.inference_mode()
def test_a_prefix_is_shared_by_its_pages():
    model = build()
    cache = poisoned(model)
    first = Sequence(model, 90, (5, 0))
    second = Sequence(model, 90, (5, 3))
    second.ids[:PAGE_TOKENS] = first.ids[:PAGE_TOKENS]
    for layer, rows in second.rows.items():
        rows[:PAGE_TOKENS] = first.rows[layer][:PAGE_TOKENS]
    second.whole = model(Batch.of_whole_sequences(second.ids[None]), second.rows.__getitem__)
    run([(first, 0, 90)], cache)
    assert_same(run([(second, PAGE_TOKENS, 90)], cache)[0], second.whole[PAGE_TOKENS:])


@torch.inference_mode()
def test_only_the_batch_s_own_positions_are_written():
    model = build()
    cache = LatentCache.empty(model.config, 7)
    run([(Sequence(model, 70, PAGES[0]), 66, 70), (Sequence(model, 3, PAGES[1]), 0, 3)], cache)
    written = torch.zeros(7, PAGE_TOKENS, dtype=torch.bool)
    written[0, 2:6] = written[2, :3] = True
    for tensor in (*cache.latents, *cache.conv.values()):
        assert torch.equal(tensor.abs().sum(-1) > 0, written)


@torch.inference_mode()
def test_more_pages_than_needed_may_be_listed():
    model = build()
    sequence = Sequence(model, 70, (*PAGES[0], 6, 1))
    assert_same(run([(sequence, 0, 70)], poisoned(model))[0], sequence.whole)


@torch.inference_mode()
def test_memory_matters_and_masked_positions_ignore_it():
    model = build("sqrt", 0)
    ids = torch.randint(0, SMALL["vocab_size"], (1, 5))
    rows = torch.randn(5, model.config.engram.width)
    batch = Batch.of_whole_sequences(ids)
    without, with_rows = model(batch), model(batch, lambda _: rows)
    assert (without - with_rows).abs().max() > 1e-2
    masked = dataclasses.replace(batch, kept=torch.zeros(5, dtype=torch.bool))
    assert torch.equal(model(masked, lambda _: rows), without)
