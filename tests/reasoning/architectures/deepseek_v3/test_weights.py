"""Names and shapes that follow from a configuration by arithmetic are those of the backbone that is built from it."""

from __future__ import annotations

import itertools

import pytest
import torch

from reasoning.architectures.deepseek_v3.architecture import DeepseekV3
from reasoning.architectures.deepseek_v3.backbone import DeepseekV3Backbone
from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from tests.reasoning.architectures.deepseek_v3.conftest import SMALL

ENGRAM = {"engram_layer_ids": [0, 2], "engram_n_heads": 2, "engram_head_dim": 16, "engram_vocab_size": 101}
CONFIGS = {
    "plain": {},
    "tied head, direct queries": {"tie_word_embeddings": True, "q_lora_rank": None},
    "dense": {"first_k_dense_replace": 3, "n_routed_experts": 0},
    "experts alone": {"first_k_dense_replace": 0, "n_shared_experts": 0},
    "prediction": {"num_nextn_predict_layers": 1, "n_shared_experts": 2},
    "prediction, tied, dense": {"num_nextn_predict_layers": 1, "tie_word_embeddings": True, "first_k_dense_replace": 4},
    "memory": ENGRAM,
    "memory with convolution": {**ENGRAM, "engram_conv_kernel": 4, "num_nextn_predict_layers": 1},
}
STACKED = {f"model.layers.{layer}.mlp.experts.gate_up_proj" for layer in range(9)}


@pytest.mark.parametrize("stored", [set(), STACKED], ids=["single experts", "stacked experts"])
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_every_weight_of_the_backbone_has_its_name_and_shape(changes, stored):
    config = DeepseekV3Config.from_dict({**SMALL, **changes})
    state = DeepseekV3Backbone(config).state_dict()
    filled = {name: torch.zeros(tensor.shape) for name, tensor in state.items()}
    named = set()
    for weight in DeepseekV3().weights(config, stored):
        assert weight.gather(state).shape == weight.shape, weight.name
        assert weight.name not in named
        named.add(weight.name)
        if not weight.copy:
            ones = {name: torch.zeros(tensor.shape) for name, tensor in state.items()}
            weight.fill(ones, torch.ones(weight.shape))
            filled = {name: filled[name] + ones[name] for name in filled}
    if config.tie_word_embeddings:
        filled["lm_head.weight"] += filled["embed_tokens.weight"]
    assert all((tensor == 1).all() for tensor in filled.values()), "storage is left out, or filled twice"
    assert bool(named & STACKED) == bool(stored and config.cached_layers > config.first_k_dense_replace)


def test_names_are_generated_lazily_whatever_the_sizes():
    sizes = {"num_hidden_layers": 10**9, "n_routed_experts": 10**9, "n_group": 1, "topk_group": 1}
    config = DeepseekV3Config.from_dict(sizes)
    first = list(itertools.islice(DeepseekV3().weights(config), 100))
    assert first[0].shape == (config.vocab_size, config.hidden_size)
    assert len(first) == 100


def test_a_table_of_memory_and_further_prediction_layers_are_ignored():
    config = DeepseekV3Config.from_dict({**SMALL, **ENGRAM, "num_nextn_predict_layers": 3})
    ignored = {
        "model.layers.3.eh_proj.weight": False,
        "model.layers.4.eh_proj.weight": True,
        "model.layers.5.mlp.gate.weight": True,
        "model.layers.0.engram.embed.weight": True,
        "model.layers.0.engram.embed.scale": True,
        "model.layers.0.self_attn.rotary_emb.inv_freq": True,
        f"model.layers.{'9' * 5000}.mlp.gate.weight": False,
        "lm_head.weight": False,
    }
    assert {name: DeepseekV3().ignores(config, name) for name in ignored} == ignored
