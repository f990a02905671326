"""Configurations of strangers: whatever they claim is held against the files before anything is built or allocated."""

from __future__ import annotations

import json
import shutil

import pytest

from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.architectures.registry import read_model_config
from reasoning.checkpoint import load
from reasoning.checkpoint.load import load_model
from reasoning.checkpoint.save import save_model
from reasoning.engram.memory_config import read_memory_config
from tests.reasoning.conftest import TINY, TINY_ENGRAM, random_model

pytestmark = pytest.mark.timeout(30)  # the right answer takes milliseconds, a wrong one forever or all memory
YARN = {"type": "yarn", "original_max_position_embeddings": 16}
SHAPE = r"tensor \S+ has shape \(.*\), config\.json asks for \(.*\)"
MISSING = r"1000 tensors or more are missing, such as model\.layers\.\d+\..*num_hidden_layers={}"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model with dense and sparse layers, experts, Engram layers and multi-token prediction."""
    directory = tmp_path_factory.mktemp("saved")
    save_model(
        random_model(DeepseekV3Config.from_dict({**TINY, **TINY_ENGRAM, "num_nextn_predict_layers": 1})), directory
    )
    return directory


@pytest.fixture
def stranger(saved, tmp_path, monkeypatch):
    """Function that writes config.json anew and loads the model, which must be refused before it is built."""
    monkeypatch.setattr(load, "_empty", lambda *_: pytest.fail("a model was built"))

    def attempt(**changes):
        (tmp_path / "config.json").write_text(json.dumps(json.loads((saved / "config.json").read_text()) | changes))
        shutil.copy(saved / "model.safetensors", tmp_path)
        load_model(tmp_path)

    return attempt


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 10**12}, SHAPE),
        ({"hidden_size": 8 * 10**8}, SHAPE),
        ({"intermediate_size": 10**12}, SHAPE),
        ({"moe_intermediate_size": 8 * 10**12}, SHAPE),
        ({"num_hidden_layers": 10**9}, MISSING.format(10**9)),
        ({"num_hidden_layers": 10**18}, MISSING.format(10**18)),
        ({"num_attention_heads": 10**9}, SHAPE),
        ({"n_routed_experts": 10**9}, SHAPE),
        ({"n_shared_experts": 10**9}, SHAPE),
        ({"q_lora_rank": 10**9}, r"tensor model\.layers\.0\.self_attn\.q_proj\.weight belongs to no layer"),
        ({"kv_lora_rank": 10**12}, SHAPE),
        ({"qk_nope_head_dim": 10**12}, SHAPE),
        ({"qk_rope_head_dim": 2 * 10**12}, SHAPE),
        ({"v_head_dim": 10**12}, SHAPE),
        ({"first_k_dense_replace": 10**12}, r"tensor model\.layers\.1\.mlp\.\S+ belongs to no layer"),
        ({"engram_conv_kernel": 10**9}, SHAPE),
        ({"engram_head_dim": 32 * 10**12}, SHAPE),
        ({"engram_n_heads": 10**9}, "engram_n_heads: 1000000000 is not supported; expected 16384 at most"),
        ({"engram_n_heads": 300}, SHAPE),
        ({"engram_max_ngram_size": 10**9}, "engram_max_ngram_size: 1000000000 is not supported; expected 16 at most"),
        ({"engram_max_ngram_size": 10**9, "engram_vocab_size": [5]}, "engram_max_ngram_size: 1000000000"),
        ({"engram_vocab_size": 10**18}, "engram_vocab_size: .* expected numbers of at most"),
        ({"engram_layer_ids": list(range(10**5)), "num_hidden_layers": 10**6}, r"engram_n_heads: 2 is .* 0 at most"),
        ({"engram_pad_token_id": 10**12}, "engram_pad_token_id: .* a token id below vocab_size=257"),
        ({"eos_token_id": list(range(10**6))}, r"eos_token_id: \(0, 1, .*\.\.\.\) .* at most 1024 token ids, not 100"),
        ({"num_experts_per_tok": 10**12}, "num_experts_per_tok: .* expected 1 to 4"),
        ({"n_group": 10**12}, "n_group: .* expected a divisor"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings: 1000000000000 .* at most 16,777,216"),
        ({"max_position_embeddings": 10**30}, "max_position_embeddings: .* of at most 9223372036854775807"),
        ({"hidden_size": 10**4000}, r"hidden_size: <integer of \d+ bits> is not supported"),
        ({"hidden_size": "9" * 10**6}, r"hidden_size: '9+\.\.\.9+' is not supported"),
        ({"hidden_size": "1e9"}, "hidden_size: '1e9' is not supported"),
        ({"rope_scaling": {**YARN, "factor": 1e300}}, r"rope_scaling\.factor: 1e\+300 is not supported"),
        ({"rope_scaling": {**YARN, "factor": 1e30}}, r"rope_scaling\.factor: 1e\+30 is not supported; expected 1 to"),
        ({"rope_scaling": {**YARN, "factor": float("nan")}}, r"rope_scaling\.factor: nan is not supported"),
        ({"rope_scaling": {**YARN, "factor": 10**400}}, r"rope_scaling\.factor: 1000.*0000 is not supported"),
        ({"rope_scaling": {**YARN, "factor": 4, "original_max_position_embeddings": 10**400}}, "original_max_position"),
        ({"rope_theta": float("inf"), "rope_scaling": None}, "rope_theta: inf is not supported"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps: nan is not supported"),
        ({"routed_scaling_factor": 1e300}, r"routed_scaling_factor: 1e\+300 is not supported"),
        ({"engram_" + "x" * 10**6: 1}, r"^engram_x+\.\.\.: 1 is not supported; expected a known engram_\* key"),
        ({"model_type": "x" * 10**6}, r"model_type: 'x+\.\.\.x+' is not supported"),
        ({"hidden_act": [[["x"] * 10**5] * 3] * 3}, "hidden_act: .* is not supported; expected 'silu'"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)  # fmt: skip
def test_claims_that_the_files_do_not_bear_out_are_refused(stranger, changes, message):
    with pytest.raises(ValueError, match=message) as refused:
        stranger(**changes)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("depth", [900, 100_000])
def test_lists_in_lists_in_lists_are_refused(stranger, tmp_path, depth):
    (tmp_path / "config.json").write_text('{"hidden_size": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(ValueError, match=r"hidden_size: \[.*\] is not supported|config\.json is not valid JSON"):
        load_model(tmp_path)


def test_an_integer_of_too_many_digits_is_no_json(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": ' + "9" * 10_000 + "}")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        load_model(tmp_path)


def test_millions_of_positions_allocate_nothing(saved, tmp_path):
    """Nothing is allocated for a position before it is used; the engine bounds its context by its own limits."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    raw = json.loads((saved / "config.json").read_text()) | {"max_position_embeddings": 1 << 24}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    many, few = load_model(tmp_path), load_model(saved)
    assert many.config.max_position_embeddings == 1 << 24
    sizes = [{name: t.shape for name, t in (*m.named_parameters(), *m.named_buffers())} for m in (many, few)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"engram_n_heads": 10**9}, "engram_n_heads"),
        ({"engram_max_ngram_size": 10**9}, "engram_max_ngram_size"),
        ({"engram_vocab_size": 10**18}, "engram_vocab_size"),
        ({"engram_layer_ids": list(range(10**5))}, "engram_n_heads"),
    ],
    ids=str,
)
def test_a_memory_is_bounded_where_no_file_bears_it_out(tmp_path, changes, field):
    """Commands that only hash read no weights to hold the numbers against."""
    raw = {**TINY, **TINY_ENGRAM, "num_hidden_layers": 10**6, **changes}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    for read in (read_memory_config, read_model_config):
        with pytest.raises(ValueError, match=field):
            read(tmp_path)


@pytest.mark.parametrize(
    ("ids", "kept"), [(500, ()), ([256, 500, 10**30, 3], (256, 3)), ([], ()), (0, (0,)), (None, ())]
)
def test_end_tokens_beyond_the_vocabulary_are_ignored(ids, kept):
    assert DeepseekV3Config.from_dict({**TINY, "eos_token_id": ids}).eos_token_id == kept
