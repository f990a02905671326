"""Multi-token prediction against the paper's formulas around a decoder layer of transformers, and piece by piece."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from reasoning.architectures.deepseek_v3.backbone import DeepseekV3Backbone
from reasoning.architectures.deepseek_v3.cache import LatentCache
from reasoning.architectures.deepseek_v3.config import DeepseekV3Config as OurConfig
from reasoning.checkpoint.files import SINGLE
from reasoning.checkpoint.load import load_model
from reasoning.drafts.mtp import MtpDrafter
from reasoning.model.batch import PAGE_TOKENS, Batch
from tests.reasoning.architectures.deepseek_v3.conftest import SMALL

LAYERS, HIDDEN, VOCAB = SMALL["num_hidden_layers"], SMALL["hidden_size"], SMALL["vocab_size"]
LENGTH = PAGE_TOKENS + 9
PAGES = (3, 1), (0, 2)


class Reference:
    """A backbone of transformers whose last layer serves the multi-token prediction."""

    def __init__(self, **changes: object):
        config = DeepseekV3Config(**{**SMALL, **changes, "num_hidden_layers": LAYERS + 1})
        self.lm = DeepseekV3ForCausalLM(config).eval()
        self.lm.model.layers[-1].mlp.gate.e_score_correction_bias.normal_(0, 0.1)
        self.own = {name: 1 + 0.3 * torch.randn(HIDDEN) for name in ("enorm", "hnorm", "shared_head.norm")}
        self.own["eh_proj"] = 0.1 * torch.randn(HIDDEN, 2 * HIDDEN)

    def save(self, directory) -> None:
        """Write it as a checkpoint of DeepSeek-V3's layout."""
        self.lm.save_pretrained(directory)
        tensors = load_file(directory / SINGLE)
        tensors |= {f"model.layers.{LAYERS}.{name}.weight": tensor for name, tensor in self.own.items()}
        tensors[f"model.layers.{LAYERS}.embed_tokens.weight"] = self.lm.model.embed_tokens.weight.clone()
        tensors[f"model.layers.{LAYERS}.shared_head.head.weight"] = self.lm.lm_head.weight.clone()
        save_file(tensors, directory / SINGLE)
        config = json.loads((directory / "config.json").read_text())
        config |= {"num_hidden_layers": LAYERS, "num_nextn_predict_layers": 1}
        (directory / "config.json").write_text(json.dumps(config))

    def backbone(self, ids: Tensor) -> Tensor:
        """Final hidden states [S, hidden]; the last layer takes no part."""
        layers = self.lm.model.layers
        self.lm.model.layers = layers[:LAYERS]
        hidden = self.lm.model(ids[None]).last_hidden_state[0]
        self.lm.model.layers = layers
        return hidden

    def ahead(self, following: Tensor, hidden: Tensor) -> Tensor:
        """Normalised outputs [S, hidden] for the tokens that follow S positions."""
        joined = torch.cat((self.norm(self.lm.model.embed_tokens(following), "enorm"), self.norm(hidden, "hnorm")), -1)
        x = (joined @ self.own["eh_proj"].T)[None]
        positions = torch.arange(len(following))[None]
        later = torch.full((len(following), len(following)), float("-inf")).triu(1)[None, None]
        embeddings = self.lm.model.rotary_emb(x, positions)
        g = self.lm.model.layers[-1](x, attention_mask=later, position_ids=positions, position_embeddings=embeddings)
        return self.norm(g[0], "shared_head.norm")

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + SMALL.get("rms_norm_eps", 1e-6)).sqrt() * self.own[name]

    def drafts(self, ids: Tensor, count: int) -> list[int]:
        """What it guesses after all of `ids`."""
        following, hidden, got = ids[1:], self.backbone(ids)[:-1], []
        for _ in range(count):
            out = self.ahead(following, hidden)
            got.append(int(self.lm.lm_head(out[-1]).argmax()))
            following, hidden = torch.cat((following, torch.tensor(got[-1:]))), torch.cat((hidden, out[-1:]))
        return got


@pytest.fixture(params=[{}, {"tie_word_embeddings": True, "q_lora_rank": None}], ids=["plain", "tied head"])
def pair(request, tmp_path):
    """The same random weights in both implementations."""
    with torch.inference_mode():
        reference = Reference(**request.param)
        reference.save(tmp_path)
    return reference, load_model(tmp_path)


def poisoned(model: DeepseekV3Backbone) -> LatentCache:
    """A cache in which reading what was never written gives NaN."""
    cache = LatentCache.empty(model.config, pages=4)
    cache.latents.fill_(float("nan"))
    return cache


def feed(
    model: DeepseekV3Backbone,
    cache: LatentCache,
    sequences: list[Tensor],
    start: int,
    ends: list[int],
    counts: list[int],
):
    """Run tokens start..end of each sequence, and the prediction with the tokens that follow them."""
    lengths = tuple(end - start for end in ends)
    starts, pages = (start,) * len(ends), PAGES[: len(ends)]
    here = torch.cat([ids[start:end] for ids, end in zip(sequences, ends, strict=True)])
    following = torch.cat([ids[start + 1 : end + 1] for ids, end in zip(sequences, ends, strict=True)])
    hidden = model(Batch(here, lengths, starts, pages), cache=cache)
    return MtpDrafter(model, VOCAB).draft(hidden, Batch(following, lengths, starts, pages), counts, cache)


@torch.inference_mode()
def test_logits_are_those_of_the_formulas(pair):
    reference, model = pair
    ids = torch.randint(0, VOCAB, (LENGTH,))
    hidden = model(Batch.of_whole_sequences(ids[None, :-1]))
    batch = Batch.of_whole_sequences(ids[None, 1:])
    got = model.logits(model.predict_ahead(hidden, batch, None))
    expected = reference.lm.lm_head(reference.ahead(ids[1:], reference.backbone(ids[:-1])))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("steps", [[LENGTH], [1] * LENGTH, [7, 1, PAGE_TOKENS, 1]], ids=["whole", "singly", "chunks"])
@torch.inference_mode()
def test_drafts_are_those_of_the_formulas_whatever_the_chunks(pair, steps):
    reference, model = pair
    ids, cache, start = torch.randint(0, VOCAB, (LENGTH + 1,)), poisoned(model), 0
    for length in steps:
        got = feed(model, cache, [ids], start, [start + length], [4 if start + length == LENGTH else 0])
        start += length
    assert got == [reference.drafts(ids, 4)]


@torch.inference_mode()
def test_sequences_of_a_step_get_as_many_drafts_as_each_wants(pair):
    reference, model = pair
    sequences = [torch.randint(0, VOCAB, (LENGTH + 1,)), torch.randint(0, VOCAB, (6,))]
    for counts in ([3, 1], [0, 2], [2, 0], [0, 0]):
        got = feed(model, poisoned(model), sequences, 0, [LENGTH, 5], counts)
        assert got == [reference.drafts(ids, count) for ids, count in zip(sequences, counts, strict=True)]


@torch.inference_mode()
def test_drafts_that_were_rejected_leave_no_trace(pair):
    reference, model = pair
    ids, cache = torch.randint(0, VOCAB, (30,)), poisoned(model)
    feed(model, cache, [ids], 0, [20], [5])  # writes latents of its own at 20..23, with tokens that do not come
    assert feed(model, cache, [ids], 20, [21], [3]) == [reference.drafts(ids[:22], 3)]


@torch.inference_mode()
def test_drafts_end_where_the_pages_do(pair):
    reference, model = pair
    ids = torch.randint(0, VOCAB, (2 * PAGE_TOKENS - 1,))
    got = feed(model, poisoned(model), [ids], 0, [2 * PAGE_TOKENS - 2], [9])
    assert got == [reference.drafts(ids, 3)]  # its own last position, and two that are left


@torch.inference_mode()
def test_drafts_stay_below_the_vocabulary_of_the_engine(pair):
    _, model = pair
    ids = torch.randint(0, 20, (9,))
    hidden, batch = model(Batch(ids[:8], (8,), (0,), PAGES[:1])), Batch(ids[1:], (8,), (0,), PAGES[:1])
    drafts = MtpDrafter(model, 20).draft(hidden, batch, [16], LatentCache.empty(model.config, 4))
    assert max(drafts[0]) < 20


def test_a_model_without_the_layer_cannot_draft_and_keeps_no_latents_for_it():
    model = DeepseekV3Backbone(OurConfig.from_dict(SMALL))
    assert len(LatentCache.empty(model.config, 1).latents) == LAYERS
    with pytest.raises(
        ValueError, match="drafts: this checkpoint has no multi-token prediction layer; use n-gram drafts"
    ):
        MtpDrafter(model, VOCAB)
