"""config.json to DeepseekV3Config and back; what is refused names its field, its value and what is accepted."""

from __future__ import annotations

import json
import re

import pytest

from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.architectures.registry import read_model_config
from reasoning.config.rope import RopeConfig
from tests.reasoning.conftest import END, TINY, TINY_ENGRAM

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 1.0, "mscale_all_dim": 0.7}
FULL = {**TINY, **TINY_ENGRAM, "rope_theta": 50000.0, "rope_scaling": YARN}


@pytest.mark.parametrize(
    "raw",
    [
        TINY,
        FULL,
        {**FULL, "q_lora_rank": 8, "bos_token_id": 0, "eos_token_id": [END, 1], "engram_vocab_size": [300, 500]},
        {**TINY, "num_nextn_predict_layers": 1},
        {**TINY, "tie_word_embeddings": True, "norm_topk_prob": False, "eos_token_id": None},
        {},
    ],
)
def test_what_is_written_reads_back_equal(raw):
    config = DeepseekV3Config.from_dict(raw)
    assert DeepseekV3Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_every_key_reaches_its_field():
    config = DeepseekV3Config.from_dict(FULL)
    for name, value in FULL.items():
        if name not in ("rope_theta", "rope_scaling", "eos_token_id", "engram_vocab_size", "engram_layer_ids"):
            owner = config.engram if name.startswith("engram_") else config
            assert getattr(owner, name.removeprefix("engram_")) == value, name
    assert (config.engram.layer_ids, config.engram.columns, config.engram.width) == ((0, 2), 4, 128)
    assert (config.engram.conv_history, config.latent_size) == (9, 24)


def test_absent_keys_have_the_values_of_the_published_architecture():
    config = DeepseekV3Config.from_dict({})
    assert (config.vocab_size, config.hidden_size, config.n_routed_experts, config.q_lora_rank) == (
        129280,
        7168,
        256,
        1536,
    )
    assert DeepseekV3Config.from_dict({"q_lora_rank": None}).q_lora_rank is None
    assert (config.engram, config.eos_token_id, config.rope) == (None, (), RopeConfig())


def test_one_number_stands_for_a_list():
    sizes = {"engram_vocab_size": 500, "engram_max_ngram_size": 4}
    assert DeepseekV3Config.from_dict({**FULL, **sizes}).engram.vocab_size == (500, 500, 500)
    assert DeepseekV3Config.from_dict({**FULL, "engram_vocab_size": [300, 500]}).engram.vocab_size == (300, 500)
    assert DeepseekV3Config.from_dict({"eos_token_id": 7}).eos_token_id == (7,)
    assert DeepseekV3Config.from_dict({"eos_token_id": [7, 9]}).eos_token_id == (7, 9)


def test_a_plain_model_writes_no_engram_keys():
    assert not [key for key in DeepseekV3Config.from_dict(TINY).to_dict() if key.startswith("engram")]


def test_keys_of_other_projects_are_ignored():
    foreign = {"ep_size": 1, "auto_map": {}, "torch_dtype": "bfloat16", "engram_num_embeddings": 12}
    assert DeepseekV3Config.from_dict({**FULL, **foreign}) == DeepseekV3Config.from_dict(FULL)


ROPE = RopeConfig(50000.0, 4.0, 16, mscale=1.0, mscale_all_dim=0.7)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"rope_theta": 50000.0, "rope_scaling": YARN}, ROPE),
        ({"rope_parameters": {**YARN, "rope_theta": 50000.0}}, ROPE),
        ({"rope_parameters": {**YARN, "rope_type": "yarn", "type": None, "rope_theta": 50000.0}}, ROPE),
        ({"rope_theta": 50000.0, "rope_scaling": {**YARN, "factor": None}, "max_position_embeddings": 64}, ROPE),
        ({"rope_theta": 50000.0, "rope_scaling": None}, RopeConfig(50000.0)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 50000.0}}, RopeConfig(50000.0)),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, RopeConfig(10000.0, 2, TINY["max_position_embeddings"])),
        ({"rope_scaling": {**YARN, "beta_fast": 16, "beta_slow": 2}}, RopeConfig(10000.0, 4.0, 16, 16, 2, 1.0, 0.7)),
    ],
)  # fmt: skip
def test_both_forms_of_rope_are_read(raw, expected):
    assert DeepseekV3Config.from_dict({**TINY, **raw}).rope == expected


REFUSED = [
    ("vocab_size", 0, "a whole number of at least 1"),
    ("hidden_size", "64", "a whole number of at least 1"),
    ("hidden_size", -1, "a whole number of at least 1"),
    ("hidden_size", 64.0, "a whole number of at least 1"),
    ("num_hidden_layers", True, "a whole number of at least 1"),
    ("num_attention_heads", {}, "a whole number of at least 1"),
    ("q_lora_rank", 0, "a whole number of at least 1"),
    ("n_shared_experts", -1, "a whole number of at least 0"),
    ("rms_norm_eps", "1e-6", "a number, not negative"),
    ("rms_norm_eps", float("nan"), "a number, not negative"),
    ("routed_scaling_factor", -2.5, "a number, not negative"),
    ("tie_word_embeddings", 1, "true or false"),
    ("norm_topk_prob", "true", "true or false"),
    ("bos_token_id", "<s>", "a whole number of at least 0"),
    ("eos_token_id", "</s>", "a list of whole numbers of at least 0"),
    ("eos_token_id", [1, -1], "a list of whole numbers of at least 0"),
    ("qk_rope_head_dim", 7, "an even number"),
    ("num_nextn_predict_layers", -1, "a whole number of at least 0"),
    ("model_type", "llama", "'deepseek_v3'"),
    ("hidden_act", "gelu", "'silu'"),
    ("attention_bias", True, "False"),
    ("scoring_func", "softmax", "'sigmoid'"),
    ("topk_method", "greedy", "'noaux_tc'"),
    ("moe_layer_freq", 2, "1"),
    ("rope_interleave", False, "True"),
    ("hc_mult", 4, "1"),
    ("n_routed_experts", 0, "1 or more, or first_k_dense_replace"),
    ("n_group", 3, "a divisor of n_routed_experts=4"),
    ("moe_intermediate_size", 12, "a multiple of 8, with routed experts"),
    ("topk_group", 2, "1 to n_group=1"),
    ("num_experts_per_tok", 5, "1 to 4, the experts of topk_group groups"),
    ("engram_max_ngram_size", 1, "2 or more"),
    ("engram_max_ngram_size", "3", "a whole number"),
    ("engram_vocab_size", [500], "one number for each of the 2 n-gram orders"),
    ("engram_vocab_size", [500, "x"], "a list of whole numbers of at least 1"),
    ("engram_vocab_size", True, "a list of whole numbers of at least 1"),
    ("engram_layer_ids", [3], "layers 0 to 2 in ascending order"),
    ("engram_layer_ids", [2, 0], "layers in ascending order, once each"),
    ("engram_layer_ids", [1, 1], "layers in ascending order, once each"),
    ("engram_layer_ids", [-1], "a list of whole numbers of at least 0"),
    ("engram_layer_ids", 1, "a list of whole numbers of at least 0"),
    ("engram_n_heads", 0, "a whole number of at least 1"),
    ("engram_pad_token_id", 257, "a token id below vocab_size=257"),
    ("engram_gate", "relu", "one of ('sqrt', 'sigmoid')"),
    ("engram_conv_kernel", -1, "a whole number of at least 0"),
    ("engram_row_format", "int8", "one of ('bf16', 'fp32', 'fp8_e4m3_ue8m0')"),
    ("engram_head_dim", 24, "a multiple of 32"),
    ("engram_head_dims", 32, "a known engram_* key; check its spelling"),
    ("rope_theta", 1.0, "a number above 1"),
    ("rope_theta", "10000", "a number above 1"),
    ("rope_scaling", "yarn", "an object"),
]


@pytest.mark.parametrize(("name", "value", "accepted"), REFUSED, ids=lambda value: str(value)[:24])
def test_what_is_refused_names_field_value_and_remedy(name, value, accepted):
    shown = re.escape(repr(tuple(value) if isinstance(value, list) else value))
    with pytest.raises(ValueError, match=rf"^{name}: {shown} is not supported; expected .*{re.escape(accepted)}"):
        DeepseekV3Config.from_dict({**TINY, **TINY_ENGRAM, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("type", "linear"),
        ("factor", "4"),
        ("factor", 0.5),
        ("beta_fast", 0),
        ("mscale", -1),
        ("original_max_position_embeddings", 0),
        ("attention_factor", 1.2),
        ("truncate", False),
    ],
)
def test_a_rope_that_is_not_implemented_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"rope_scaling.{name}: {value!r} is not supported; expected "):
        DeepseekV3Config.from_dict({**TINY, "rope_scaling": {**YARN, name: value}})


def test_expert_numbers_do_not_matter_to_a_dense_model():
    dense = {**TINY, "first_k_dense_replace": 3, "n_routed_experts": 0, "num_experts_per_tok": 0, "n_group": 0}
    assert DeepseekV3Config.from_dict(dense).n_routed_experts == 0
    with pytest.raises(ValueError, match=r"n_routed_experts: 0 .* or first_k_dense_replace=4"):  # of its MTP layer
        DeepseekV3Config.from_dict({**dense, "num_nextn_predict_layers": 1})


@pytest.mark.parametrize("content", ["{", "", '["vocab_size"]', "7", b"\xff\xfe{}"], ids=repr)
def test_a_file_that_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"config\.json.*(is not valid JSON.*copy|expected a JSON object)"):
        read_model_config(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json does not exist; give a directory"):
        read_model_config(tmp_path / "nowhere")
