"""Held-out loss: every token of every document counts once, whatever the window."""

from __future__ import annotations

import copy
import dataclasses
import math
import os

import pytest
import torch
import torch.nn.functional as F

from memory_service import LocalMemory, pack_rows
from reasoning.engram.model_hasher import table_specs
from reasoning.engram.row_lookup import RowLookup
from reasoning.model.batch import Batch
from reasoning.training.corpus import Stream
from reasoning.runs.evaluation import HeldOutLoss, held_out_loss, xz_bits_per_byte
from reasoning.training.loop import Trainer

from .conftest import MEMORY, MODEL, RUN


@pytest.fixture(scope="module")
def stream(bpe, corpus):
    return Stream.encode(bpe, corpus.held_out)


@pytest.fixture(scope="module")
def trained(parts):
    """A model with tables that matter, as its trainer leaves them and as a memory."""
    memory = dataclasses.replace(MEMORY, conv_kernel=0, row_format="fp32")
    model = dataclasses.replace(MODEL, max_position_embeddings=512, engram=memory)
    trainer = Trainer(model, *parts, dataclasses.replace(RUN, steps=6))
    for values in trainer.tables.values.values():
        values *= 50
    trainer.run(lambda _: None)
    specs = table_specs(memory, trainer.hasher)
    tables = LocalMemory({spec: pack_rows(trainer.tables.values[spec.layer], "fp32") for spec in specs})
    return trainer.model, RowLookup(trainer.hasher, specs, tables, timeout_s=1.0)


@torch.inference_mode()
def whole_document_loss(model, lookup, stream):
    total = 0.0
    for number in range(len(stream.sizes)):
        ids = torch.from_numpy(stream.document(number).astype("int64"))[None]
        rows = lookup.request([ids[0, :-1].tolist()], [[]]) if lookup else None
        logits = model.logits(model(Batch.of_whole_sequences(ids[:, :-1]), rows))
        total += F.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
    return total


@pytest.mark.parametrize("with_memory", [True, False])
def test_a_window_beyond_every_document_scores_documents_as_a_whole(trained, stream, with_memory):
    model, lookup = trained[0], trained[1] if with_memory else None
    loss = held_out_loss(model, lookup, stream, window=500)
    assert loss.tokens == len(stream.tokens) - len(stream.sizes)
    assert loss.bytes == stream.sizes.sum()
    assert loss.nats == pytest.approx(whole_document_loss(model, lookup, stream), rel=1e-5)


def test_leaving_the_memory_out_changes_the_loss(trained, stream):
    model, lookup = trained
    assert abs(held_out_loss(model, lookup, stream).nats / held_out_loss(model, None, stream).nats - 1) > 0.01


@pytest.mark.parametrize("window", [8, 31, 64])
def test_short_windows_score_every_token_once_with_its_n_grams(trained, stream, window):
    """Without attention, tokens depend on nothing but their n-grams, so windows must not matter at all."""
    model, lookup = copy.deepcopy(trained[0]), trained[1]
    for layer in model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    loss = held_out_loss(model, lookup, stream, window)
    assert loss.tokens == len(stream.tokens) - len(stream.sizes)
    assert loss.nats == pytest.approx(whole_document_loss(model, lookup, stream), rel=1e-5)


def test_bits_a_byte_follow_from_nats_and_bytes():
    loss = HeldOutLoss(nats=math.log(2) * 240, tokens=60, bytes=120)
    assert loss.bits_per_byte == pytest.approx(2.0)
    assert loss.nats_per_token == pytest.approx(4 * math.log(2))


def test_xz_sees_all_files_as_one():
    noise = os.urandom(4000)
    assert 8 < xz_bits_per_byte([noise]) < 8.4
    assert 4 < xz_bits_per_byte([noise, noise]) < 4.3
