"""The backbone against transformers' DeepseekV3, weights through the checkpoint files: logits and greedy tokens."""

from __future__ import annotations

import pytest
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from reasoning.architectures.deepseek_v3.cache import LatentCache
from reasoning.checkpoint.load import load_model
from reasoning.model.batch import Batch
from tests.reasoning.architectures.deepseek_v3.conftest import SMALL

YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
    "beta_fast": 32,
    "beta_slow": 1,
}
VARIANTS = {
    "q-lora, groups": {},
    "no q-lora, tied head": {"q_lora_rank": None, "tie_word_embeddings": True},
    "yarn": {"rope_scaling": YARN},
    "yarn without mscale": {"rope_scaling": {**YARN, "mscale": 0, "mscale_all_dim": 0}},
    "one group, unnormalised": {"n_group": 1, "topk_group": 1, "norm_topk_prob": False, "first_k_dense_replace": 0},
    "two shared experts": {"n_shared_experts": 2, "first_k_dense_replace": 2, "routed_scaling_factor": 1.0},
    "dense only": {"first_k_dense_replace": 3},
}


@pytest.fixture(params=VARIANTS, ids=str)
def pair(request, tmp_path):
    """The same random weights in both implementations."""
    reference = DeepseekV3ForCausalLM(DeepseekV3Config(**{**SMALL, **VARIANTS[request.param]})).eval()
    for layer in reference.model.layers:
        if hasattr(layer.mlp, "gate"):  # an all-zero bias would hide a mistake in its use
            layer.mlp.gate.e_score_correction_bias.normal_(0, 0.1)
    reference.save_pretrained(tmp_path)
    return reference, load_model(tmp_path)


@torch.inference_mode()
def test_logits_are_those_of_transformers(pair):
    reference, model = pair
    ids = torch.randint(0, SMALL["vocab_size"], (2, 60))
    ours = model.logits(model(Batch.of_whole_sequences(ids)))
    torch.testing.assert_close(ours, reference(ids).logits.flatten(0, 1), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_greedy_tokens_are_those_of_transformers(pair):
    reference, model = pair
    prompt = torch.randint(2, SMALL["vocab_size"], (1, 17))
    expected = reference.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=32,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0, 17:]
    cache = LatentCache.empty(model.config, pages=1)
    batch, got = Batch(prompt[0], (17,), (0,), ((0,),)), []
    for position in range(17, 17 + 32):
        token = model.logits(model(batch, cache=cache)[-1:]).argmax(-1)
        got.append(token.item())
        batch = Batch(token, (1,), (position,), ((0,),))
    assert got == expected.tolist()
