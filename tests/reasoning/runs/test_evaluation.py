"""Held-out loss: every token of every document counts once, whatever the window."""

from __future__ import annotations

import copy
import dataclasses
import math
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from memory_service import LocalMemory, pack_rows
from reasoning.corpora.build import build_corpus
from reasoning.corpora.manifest import HELD_OUT
from reasoning.corpora.tokens import TokenShards
from reasoning.engram.row_lookup import RowLookup
from reasoning.model.batch import Batch
from reasoning.runs.evaluation import Documents, HeldOutLoss, held_out_loss, xz_bits_per_byte
from reasoning.text.tokenizer import Tokenizer
from tests.reasoning.conftest import END, byte_tokenizer
from tests.reasoning.runs.small_run import corpus_config
from tests.reasoning.training.small import MODEL, hasher, new_model, source, specs


@pytest.fixture(scope="module")
def documents():
    texts = [source(number) for number in range(3)]
    ids = [[END, *Tokenizer(byte_tokenizer()).backend.encode(text).ids] for text in texts]
    return Documents([np.array(each[: 150 + 40 * i]) for i, each in enumerate(ids)], sum(map(len, texts)))


@pytest.fixture(scope="module")
def model():
    """A model without the convolution, in which a token's memory follows from its own n-grams."""
    config = dataclasses.replace(
        MODEL, max_position_embeddings=512, engram=dataclasses.replace(MODEL.engram, conv_kernel=0)
    )
    return new_model(config).eval()


@pytest.fixture(scope="module")
def lookup():
    rng = np.random.default_rng(0)
    tables = {spec: rng.standard_normal((spec.rows, spec.dim)).astype(np.float32) for spec in specs()}
    memory = LocalMemory({spec: pack_rows(values, "fp32") for spec, values in tables.items()})
    return RowLookup(hasher(), list(specs()), memory, timeout_s=1.0)


@torch.inference_mode()
def whole_document_loss(model, lookup, documents):
    total = 0.0
    for document in documents.tokens:
        ids = torch.from_numpy(document)[None]
        rows = lookup.request([ids[0, :-1].tolist()], [[]]) if lookup else None
        logits = model.logits(model(Batch.of_whole_sequences(ids[:, :-1]), rows))
        total += F.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
    return total


@pytest.mark.parametrize("with_memory", [True, False])
def test_a_window_beyond_every_document_scores_documents_as_a_whole(model, lookup, documents, with_memory):
    memory = lookup if with_memory else None
    loss = held_out_loss(model, memory, documents, window=500)
    assert loss.tokens == sum(len(document) - 1 for document in documents.tokens)
    assert loss.bytes == documents.bytes
    assert loss.nats == pytest.approx(whole_document_loss(model, memory, documents), rel=1e-5)


def test_leaving_the_memory_out_changes_the_loss(model, lookup, documents):
    assert abs(held_out_loss(model, lookup, documents).nats / held_out_loss(model, None, documents).nats - 1) > 1e-3


@pytest.mark.parametrize("window", [8, 31, 64])
def test_short_windows_score_every_token_once_with_its_n_grams(model, lookup, documents, window):
    """Without attention, tokens depend on nothing but their n-grams, so windows must not matter at all."""
    deaf = copy.deepcopy(model)
    for layer in deaf.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    loss = held_out_loss(deaf, lookup, documents, window)
    assert loss.tokens == sum(len(document) - 1 for document in documents.tokens)
    assert loss.nats == pytest.approx(whole_document_loss(deaf, lookup, documents), rel=1e-5)


@torch.inference_mode()
def test_each_token_has_half_a_window_of_context(model, documents):
    """By hand: the first window as a whole, then windows that are half new."""
    window, nats = 16, 0.0
    document = documents.tokens[0][:50]
    begins = [(0, 16, 0), (8, 24, 8), (16, 32, 8), (24, 40, 8), (32, 48, 8), (33, 49, 15)]
    for begin, end, given in begins:
        ids = torch.from_numpy(document[begin : end + 1])[None]
        logits = model.logits(model(Batch.of_whole_sequences(ids[:, :-1])))
        nats += F.cross_entropy(logits[given:], ids[0, 1 + given :], reduction="sum").item()
    loss = held_out_loss(model, None, Documents([document], 100), window)
    assert loss.nats == pytest.approx(nats, rel=1e-5)


@pytest.fixture(scope="module")
def corpus_of_files(tmp_path_factory, sources):
    """A corpus in which a file is a document."""
    output = tmp_path_factory.mktemp("files") / "corpus"
    build_corpus(corpus_config(sources, packing="files"), output)
    return output


def test_documents_of_a_corpus_are_its_files_from_their_beginning(corpus_of_files, sources):
    shards = TokenShards.open(corpus_of_files, HELD_OUT)
    tokenizer = Tokenizer.from_file(corpus_of_files).backend
    found = Documents.of(shards)
    assert len(found.tokens) == len(shards.document_bytes) > 1
    assert found.bytes == sum(shards.document_bytes)
    texts = {path.read_text() for path in sources.rglob("*.py")}
    for tokens, size in zip(found.tokens, shards.document_bytes, strict=True):
        assert tokens[0] == tokenizer.token_to_id("<|endoftext|>")
        text = tokenizer.decode(tokens[1:].tolist())
        assert text in texts
        assert len(text.encode()) == size
        texts.remove(text)


def test_a_run_is_evaluated_on_the_first_of_many_documents(corpus_of_files):
    shards = TokenShards.open(corpus_of_files, HELD_OUT)
    sizes, whole = shards.document_bytes, Documents.of(shards)
    for count in range(1, len(sizes)):
        begin = int(sizes[:count].sum())
        for most in (begin, begin - sizes[count - 1] + 1):  # a document that begins below the limit is taken whole
            found = Documents.of(shards, int(most))
            assert found.bytes == begin
            assert [each.tolist() for each in found.tokens] == [each.tolist() for each in whole.tokens[:count]]


def test_bits_a_byte_follow_from_nats_and_bytes():
    loss = HeldOutLoss(nats=math.log(2) * 240, tokens=60, bytes=120)
    assert loss.bits_per_byte == pytest.approx(2.0)
    assert loss.nats_per_token == pytest.approx(4 * math.log(2))


def test_xz_sees_all_files_as_one():
    noise = os.urandom(4000)
    assert 8 < xz_bits_per_byte([noise]) < 8.4
    assert 4 < xz_bits_per_byte([noise, noise]) < 4.3
