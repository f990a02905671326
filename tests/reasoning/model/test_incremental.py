"""Whatever the chunking, and whoever else is in the batch, a sequence comes out as when it is computed at once."""

import dataclasses

import pytest
import torch

from reasoning.config import ModelConfig
from reasoning.model.batch import Batch, Cache
from reasoning.model.transformer import Transformer

from .conftest import SMALL

ENGRAM = {"engram_layer_ids": [0, 2], "engram_n_heads": 2, "engram_head_dim": 16, "engram_vocab_size": 101}
LENGTH = 40


def build(gate: str, conv_kernel: int) -> Transformer:
    config = ModelConfig.from_dict({**SMALL, **ENGRAM, "engram_gate": gate, "engram_conv_kernel": conv_kernel})
    model = Transformer(config).initialise(torch.Generator().manual_seed(1)).eval()
    for layer in model.layers:
        if layer.engram is not None and layer.engram.conv is not None:
            torch.nn.init.normal_(layer.engram.conv.weight, 0, 0.3)  # zero, as initialised, would hide the convolution
    return model


@pytest.mark.parametrize("gate", ["sqrt", "sigmoid"])
@pytest.mark.parametrize("conv_kernel", [0, 4])
@pytest.mark.parametrize("chunks", [[1] * LENGTH, [7, 1, 20, 12], [39, 1], [3, 37]], ids=str)
@torch.inference_mode()
def test_chunks_equal_the_whole(gate, conv_kernel, chunks):
    model = build(gate, conv_kernel)
    ids = torch.randint(0, SMALL["vocab_size"], (2, LENGTH))
    rows = {layer: torch.randn(2, LENGTH, model.config.engram_width) for layer in model.config.engram_layer_ids}
    whole = model(Batch.of_whole_sequences(ids), lambda layer: rows[layer].flatten(0, 1)).unflatten(0, (2, LENGTH))

    cache = Cache.empty(model.config, slots=3, context=LENGTH)
    parts, start = [], 0
    for size in chunks:
        here = slice(start, start + size)
        batch = Batch(ids[:, here].flatten(), (size, size), (start, start), slots=(2, 0))
        hidden = model(batch, lambda layer, here=here: rows[layer][:, here].flatten(0, 1), cache)
        parts.append(hidden.unflatten(0, (2, size)))
        start += size
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-5, rtol=0)


@torch.inference_mode()
def test_a_ragged_batch_equals_its_sequences_alone():
    model = build("sqrt", 4)
    lengths, slots = (1, 13, 1, 6), (3, 1, 0, 2)
    chunks = [torch.randint(0, SMALL["vocab_size"], (n,)) for n in lengths]
    rows = {layer: [torch.randn(n, model.config.engram_width) for n in lengths] for layer in (0, 2)}
    starts = (5, 0, 0, 9)
    together, alone = (Cache.empty(model.config, 4, 32) for _ in range(2))
    for cache in (together, alone):
        generator = torch.Generator().manual_seed(7)
        cache.latents.normal_(generator=generator)
        for history in cache.conv.values():
            history.normal_(generator=generator)
    batch = Batch(torch.cat(chunks), lengths, starts, slots)
    got = model(batch, lambda layer: torch.cat(rows[layer]), together).split(lengths)
    for i, chunk in enumerate(chunks):
        one = Batch(chunk, (lengths[i],), (starts[i],), (slots[i],))
        expected = model(one, lambda layer, i=i: rows[layer][i], alone)
        torch.testing.assert_close(got[i], expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(together.latents, alone.latents, atol=2e-5, rtol=0)
    for layer in together.conv:
        torch.testing.assert_close(together.conv[layer], alone.conv[layer], atol=2e-5, rtol=0)


@torch.inference_mode()
def test_a_slot_forgets_its_last_sequence():
    model = build("sqrt", 4)
    ids = torch.randint(0, SMALL["vocab_size"], (9,))
    rows = torch.randn(9, model.config.engram_width)
    used, new = (Cache.empty(model.config, 1, 16) for _ in range(2))
    used.latents.normal_()
    for history in used.conv.values():
        history.normal_()
    used.reset(0)
    batch = Batch(ids, (9,), (0,), (0,))
    assert torch.equal(model(batch, lambda _: rows, used), model(batch, lambda _: rows, new))


@torch.inference_mode()
def test_memory_matters_and_masked_positions_ignore_it():
    model = build("sqrt", 0)
    ids = torch.randint(0, SMALL["vocab_size"], (1, 5))
    rows = torch.randn(5, model.config.engram_width)
    batch = Batch.of_whole_sequences(ids)
    without, with_rows = model(batch), model(batch, lambda _: rows)
    assert (without - with_rows).abs().max() > 1e-2
    masked = dataclasses.replace(batch, kept=torch.zeros(5, dtype=torch.bool))
    assert torch.equal(model(masked, lambda _: rows), without)
