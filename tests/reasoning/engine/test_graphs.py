"""Decoding by graphs, recorded and replayed on the CPU: the same hidden states and tokens as without."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from memory_service import LocalMemory
from reasoning.architectures.deepseek_v3 import attention
from reasoning.architectures.deepseek_v3.cache import LatentCache
from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.engine import Engine
from reasoning.engine.config import EngineConfig
from reasoning.engine.graphs import CudaRecorder, DecodeGraphs
from reasoning.engram.model_hasher import build_hasher, table_specs
from reasoning.model.batch import PAGE_TOKENS, Batch
from reasoning.model.decode_batch import DecodeBatch
from reasoning.request import Request, SamplingParams
from reasoning.text.tokenizer import Tokenizer
from tests.reasoning.conftest import TINY, TINY_ENGRAM, byte_tokenizer, random_model, random_rows
from tests.reasoning.tape import TapeRecorder

MAX_PAGES = 3
PAGES = [(4, 0, 9), (2, 7, 1), (5, 3, 6), (8, 10, 11), (12, 13, 14)]
STARTS = [0, 63, 100, 130, 5]
SCRATCH = 15


@pytest.fixture
def config():
    return DeepseekV3Config.from_dict({**TINY, **TINY_ENGRAM, "max_position_embeddings": 320})


@pytest.fixture
def model(config, monkeypatch):
    """It attends as on a GPU, where a kernel finds contexts and pages on the device."""
    monkeypatch.setattr(attention, "use_triton", lambda *_: True)
    monkeypatch.setattr(attention, "mla_decode", device_side_decode)
    return random_model(config)


def device_side_decode(query, queries, latents, pages, lengths, rank, scale):
    """`mla_decode` for one token a sequence, without a look at what tensors hold."""
    assert queries.longest == 1
    context = latents[pages].flatten(1, 2).nan_to_num()
    seen = torch.arange(context.shape[1]) < lengths[:, None]
    scores = torch.einsum("bhr,bsr->bhs", query, context) * scale
    weights = scores.masked_fill(~seen[:, None], float("-inf")).softmax(dim=-1)
    return torch.einsum("bhs,bsr->bhr", weights, context[..., :rank])


def filled(model):
    """A cache in which sequences have written the positions before their starts, and nothing else is written."""
    cache = LatentCache.empty(model.config, SCRATCH + 1)
    generator = torch.Generator().manual_seed(0)
    for tensor in (cache.latents, *(history[None] for history in cache.conv.values())):
        tensor.fill_(float("nan"))
        for pages, start in zip(PAGES, STARTS, strict=True):
            for position in range(start):
                page = pages[position // PAGE_TOKENS]
                values = torch.randn(tensor.shape[0], tensor.shape[-1], generator=generator)
                tensor[:, page, position % PAGE_TOKENS] = values
    return cache


class Steps:
    """Decoding steps of some sequences, with made-up tokens and rows."""

    def __init__(self, model):
        self.model, self.positions = model, list(STARTS)
        self.generator = torch.Generator().manual_seed(1)

    def next(self, sequences):
        ids = torch.randint(0, 257, (len(sequences),), generator=self.generator)
        starts = tuple(self.positions[i] for i in sequences)
        for i in sequences:
            self.positions[i] += 1
        width = self.model.config.engram.width
        rows = {layer: torch.randn(len(ids), width, generator=self.generator) for layer in (0, 2)}
        return Batch(ids, (1,) * len(ids), starts, tuple(PAGES[i] for i in sequences)), rows.__getitem__


@torch.no_grad()
def test_steps_of_any_size_and_context_are_those_of_the_model(model):
    steps, recorder = Steps(model), TapeRecorder()
    cache, other = filled(model), filled(model)
    graphs = DecodeGraphs(model, cache, 5, MAX_PAGES, recorder)
    for sequences in ([0, 1, 2], [1, 0, 3], [4, 2, 0, 1], [2], [0], [3], [4, 3, 2, 1, 0], [0, 1, 2, 3, 4], [1, 2, 4]):
        batch, rows = steps.next(sequences)
        hidden = graphs(batch, rows, cache)
        torch.testing.assert_close(hidden, model(batch, rows, other), atol=1e-5, rtol=1e-5)
    assert len(recorder.tapes) == 3 * 3  # sizes 4, 1 and 5; cut before layers 0 and 2
    for ours, theirs in ((cache.latents, other.latents), (cache.conv[2][None], other.conv[2][None])):
        torch.testing.assert_close(ours[:, :SCRATCH], theirs[:, :SCRATCH], atol=1e-5, rtol=1e-5, equal_nan=True)


@torch.no_grad()
def test_whatever_is_not_mere_decoding_runs_as_usual(model):
    cache, ran = filled(model), []
    graphs = DecodeGraphs(lambda *args: ran.append(args), cache, 2, MAX_PAGES, TapeRecorder())
    pages, ids = tuple(PAGES[:3]), torch.tensor([1, 2, 3])
    batches = [
        Batch(ids, (2, 1), (0, 63), pages[:2]),
        Batch(ids, (1, 1, 1), (0, 63, 100), pages),
        Batch(ids[:2], (1, 1), (0, 63), pages[:2], kept=torch.tensor([True, False])),
    ]
    for batch in batches:
        graphs(batch, None, cache)
    assert [args[0] for args in ran] == batches


@torch.no_grad()
def test_rows_that_do_not_come_leave_a_step_to_be_run_again(model):
    steps, cache, other = Steps(model), filled(model), filled(model)
    graphs = DecodeGraphs(model, cache, 4, MAX_PAGES, TapeRecorder())
    for _ in range(3):
        batch, rows = steps.next([0, 1])

        def lost(layer, rows=rows):
            if layer == 2:
                raise RuntimeError("lost")
            return rows(layer)

        for _ in range(2):
            with pytest.raises(RuntimeError, match="lost"):
                graphs(batch, lost, cache)
        expected = model(batch, rows, other)
        torch.testing.assert_close(graphs(batch, rows, cache), expected, atol=1e-5, rtol=1e-5)


def test_a_decode_batch_finds_places_as_a_batch_does():
    starts, table = torch.tensor(STARTS), torch.tensor(PAGES)
    batch = Batch(torch.zeros(5, dtype=torch.int64), (1,) * 5, tuple(STARTS), tuple(PAGES))
    ours = DecodeBatch.of(batch.token_ids, starts + 1, table)
    assert ours.positions.tolist() == batch.positions.tolist()
    assert ours.places.tolist() == batch.places.tolist()
    assert ours.earlier((0, 3, 64, 128)).tolist() == batch.earlier((0, 3, 64, 128)).tolist()


@torch.no_grad()
def test_kernels_serve_a_step_and_on_a_gpu_its_graphs(config, monkeypatch):
    pytest.importorskip("triton")
    gpu = torch.cuda.is_available()  # without one, Triton's interpreter shows what runs before the recording
    device = torch.device("cuda" if gpu else "cpu")
    model = random_model(config)
    steps, cache, other = Steps(model), filled(model), filled(model)
    batches = [steps.next(sequences) for sequences in ([3, 0, 1], [0, 1, 2], [3, 1, 2], [1, 0])[: 4 if gpu else 1]]
    expected = [model(batch, rows, other) for batch, rows in batches]
    monkeypatch.setenv("ENGRAM_KERNELS", "triton")
    model = model.to(device)
    cache = LatentCache(cache.latents.to(device), {layer: history.to(device) for layer, history in cache.conv.items()})
    graphs = DecodeGraphs(model, cache, 4, MAX_PAGES, CudaRecorder(device) if gpu else TapeRecorder())
    for (batch, rows), hidden in zip(batches, expected, strict=True):
        there = dataclasses.replace(batch, token_ids=batch.token_ids.to(device))
        got = graphs(there, lambda layer, rows=rows: rows(layer).to(device), cache)
        torch.testing.assert_close(got.cpu(), hidden, atol=1e-4, rtol=1e-4)


def test_an_engine_with_graphs_generates_the_same_tokens(config, model, tmp_path):
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(tmp_path)
    memory = LocalMemory(
        {spec: random_rows(spec) for spec in table_specs(config.engram, build_hasher(config.engram, tokenizer))}
    )
    requests = [
        Request(str(i), "x" * (40 + 13 * i), sampling=SamplingParams(max_new_tokens=8 + 5 * i, ignore_eos=True))
        for i in range(5)
    ]
    tokens, recorder = [], TapeRecorder()
    for recorded in (False, True):
        engine = Engine(model, tokenizer, memory, EngineConfig(max_batch=3, max_context=160, drafts="none"))
        if recorded:
            engine.runner._forward = DecodeGraphs(model, engine.runner.cache, 3, MAX_PAGES, recorder)
        found = {result.id: result.choices[0].token_ids for result in engine.generate(requests)}
        engine.check_integrity()
        tokens.append(found)
    assert tokens[0] == tokens[1]
    assert len(recorder.tapes) == 9  # sizes 1, 2 and 3
