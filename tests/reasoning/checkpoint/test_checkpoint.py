"""Checkpoints in Hugging Face layout: what is saved loads back, published forms load, damage is named."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from reasoning.architectures.deepseek_v3.config import DeepseekV3Config as OurConfig
from reasoning.architectures.deepseek_v3.moe import Router
from reasoning.checkpoint.files import INDEX, SINGLE
from reasoning.checkpoint.load import load_model
from reasoning.checkpoint.save import save_model
from reasoning.model.batch import Batch
from tests.reasoning.conftest import TINY, TINY_ENGRAM, change_tensors, random_model

IDS = torch.arange(20)[None] * 7 % 257


def tiny(**changes):
    model = random_model(OurConfig.from_dict({**TINY, **changes}))
    for module in model.modules():
        if isinstance(module, Router):
            module.e_score_correction_bias.normal_(0, 0.1)
    return model


def mtp_model(**changes):
    return tiny(**changes, num_nextn_predict_layers=1)


def logits(model):
    return model.logits(model(Batch.of_whole_sequences(IDS)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard_bytes", [1 << 30, 10_000])
@pytest.mark.parametrize("ahead", [0, 1], ids=["backbone", "with multi-token prediction"])
def test_what_is_saved_loads_equal(tmp_path, dtype, shard_bytes, ahead):
    model = tiny(**TINY_ENGRAM, tie_word_embeddings=True, num_nextn_predict_layers=ahead)
    save_model(model, tmp_path, dtype, shard_bytes)
    loaded = load_model(tmp_path)
    assert (tmp_path / INDEX).is_file() == (shard_bytes < 1 << 30)
    assert loaded.config == model.config
    assert not loaded.training
    expected = model.state_dict()
    assert expected.keys() == loaded.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        rounded = expected[name] if name.endswith("correction_bias") else expected[name].to(dtype).float()
        assert torch.equal(tensor, rounded), name
    assert loaded.lm_head.weight is loaded.embed_tokens.weight


def test_shards_stay_below_their_size_and_the_index_names_every_tensor(tmp_path):
    save_model(tiny(), tmp_path, torch.float32, shard_bytes=40_000)
    index = json.loads((tmp_path / INDEX).read_text())
    sizes = {}
    for path in tmp_path.glob("*.safetensors"):
        tensors = load_file(path)
        sizes[path.name] = sum(tensor.nbytes for tensor in tensors.values())
        assert all(index["weight_map"][name] == path.name for name in tensors)
    assert len(sizes) > 1
    assert max(sizes.values()) <= 40_000
    assert sum(sizes.values()) == index["metadata"]["total_size"]


@pytest.mark.parametrize("order", [(1 << 30, 10_000), (10_000, 1 << 30)], ids=["then sharded", "then single"])
def test_a_save_replaces_an_earlier_one(tmp_path, order):
    for seed, shard_bytes in enumerate(order):
        model = random_model(OurConfig.from_dict(TINY), seed)
        save_model(model, tmp_path, torch.float32, shard_bytes)
    assert torch.equal(load_model(tmp_path).lm_head.weight, model.lm_head.weight)
    assert (tmp_path / INDEX).is_file() != (tmp_path / SINGLE).is_file()


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": True, "q_lora_rank": 12}, {"rope_scaling": True}, {"num_nextn_predict_layers": 1}],
)
@torch.inference_mode()
def test_transformers_reads_what_is_written(tmp_path, changes):
    if "rope_scaling" in changes:
        changes = {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}
    model = tiny(**changes)
    save_model(model, tmp_path, torch.float32, shard_bytes=40_000)
    reference = DeepseekV3ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(logits(model), reference(IDS).logits[0], atol=1e-4, rtol=0)


def test_tensors_of_other_parts_are_left_alone(tmp_path):
    save_model(tiny(**TINY_ENGRAM), tmp_path, torch.float32)
    expected = load_model(tmp_path).state_dict()

    def add(tensors):
        for name in ("embed_tokens.weight", "enorm.weight", "mlp.gate.weight"):  # multi-token prediction
            tensors[f"model.layers.3.{name}"] = torch.ones(2)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        tensors["model.layers.0.engram.embed.weight"] = torch.ones(9, 32)
        tensors["model.layers.0.engram.embed.scale"] = torch.ones(9, 1)

    change_tensors(tmp_path, add)
    for name, tensor in load_model(tmp_path).state_dict().items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("tied", [False, True])
def test_multi_token_prediction_is_written_as_deepseek_v3_has_it(tmp_path, tied):
    model = mtp_model(tie_word_embeddings=tied)
    save_model(model, tmp_path, torch.float32)
    saved = load_file(tmp_path / SINGLE)
    names = {name.removeprefix("model.layers.3.") for name in saved if name.startswith("model.layers.3.")}
    backbone = {name.removeprefix("model.layers.2.") for name in saved if name.startswith("model.layers.2.")}
    own = ("enorm", "hnorm", "eh_proj", "embed_tokens", "shared_head.norm", "shared_head.head")
    assert names == backbone | {f"{name}.weight" for name in own}
    assert torch.equal(saved["model.layers.3.embed_tokens.weight"], model.embed_tokens.weight)
    assert torch.equal(saved["model.layers.3.shared_head.head.weight"], model.lm_head.weight)
    assert json.loads((tmp_path / "config.json").read_text())["num_nextn_predict_layers"] == 1


def test_multi_token_prediction_is_loaded_whole_or_not_at_all(tmp_path):
    save_model(mtp_model(), tmp_path, torch.float32)
    change_tensors(tmp_path, lambda tensors: tensors.pop("model.layers.3.eh_proj.weight"))
    with pytest.raises(ValueError, match=r"1 tensors are missing, such as model\.layers\.3\.eh_proj\.weight"):
        load_model(tmp_path)
    save_model(mtp_model(), tmp_path, torch.float32)
    change_tensors(tmp_path, drop_prediction)  # as transformers saves it: announced but absent
    loaded = load_model(tmp_path)
    assert (loaded.mtp, loaded.config.num_nextn_predict_layers) == (None, 0)


@pytest.mark.parametrize("count", [2, 3, 10**9])
def test_more_prediction_layers_than_one_are_read_as_one(tmp_path, count):
    """The first one drafts all tokens; where the files have none, there is none, whatever config.json counts."""
    model = mtp_model()
    save_model(model, tmp_path, torch.float32)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_nextn_predict_layers": count}))

    def add(tensors):
        first = {name: tensor for name, tensor in tensors.items() if name.startswith("model.layers.3.")}
        tensors.update({name.replace("layers.3.", "layers.4."): tensor + 1 for name, tensor in first.items()})

    change_tensors(tmp_path, add)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded.mtp.eh_proj.weight, model.mtp.eh_proj.weight)
    change_tensors(tmp_path, drop_prediction)
    assert not load_model(tmp_path).has_mtp


def drop_prediction(tensors):
    for name in [name for name in tensors if name.startswith(("model.layers.3.", "model.layers.4."))]:
        del tensors[name]


def rename(tensors):
    tensors["model.layers.0.mlp.up.weight"] = tensors.pop("model.layers.0.mlp.up_proj.weight")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), r"1 tensors are missing, such as model\.norm\.weight"),
        (lambda t: t.update({"model.norm.weight": torch.ones(31)}), r"norm\.weight has shape \(31,\).* for \(32,\)"),
        (rename, r"model\.layers\.0\.mlp\.up\.weight belongs to no layer of this config"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(tmp_path, edit, message):
    save_model(tiny(), tmp_path, torch.float32)
    change_tensors(tmp_path, edit)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize("edit", [lambda t: t.to(torch.float64), lambda t: t], ids=["fp64", "fp32"])
def test_weights_of_any_floating_type_load(tmp_path, edit):
    model = tiny()
    save_model(model, tmp_path, torch.float32)
    change_tensors(tmp_path, lambda tensors: tensors.update({name: edit(t) for name, t in tensors.items()}))
    for name, tensor in load_model(tmp_path).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


@pytest.mark.parametrize("stored", ["I16", "U16", "F16"])
def test_a_header_that_declares_another_type_is_refused_unless_it_holds_weights(tmp_path, stored):
    save_model(tiny(), tmp_path, torch.bfloat16)
    content = (tmp_path / SINGLE).read_bytes()
    name = b'"model.norm.weight":{"dtype":"'
    padding = b" " * (len("BF16") - len(stored))  # between tokens, so that the header keeps its length
    at = content.index(name) + len(name)
    assert content[at : at + 5] == b'BF16"'
    changed = content[:at] + stored.encode() + b'"' + padding + content[at + 5 :]
    (tmp_path / SINGLE).write_bytes(changed)
    if stored == "F16":
        assert load_model(tmp_path).norm.weight.isfinite().all()
        return
    message = rf"tensor model\.norm\.weight is stored as {stored}, but weights are F64, F32, F16, BF16, or F8_E4M3"
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize("changes", [{}, {"n_shared_experts": 0, "first_k_dense_replace": 0}, {"tie": True}], ids=str)
@torch.inference_mode()
def test_experts_load_in_both_spellings_of_transformers(tmp_path, changes):
    config = DeepseekV3Config(**{**TINY, **changes, "tie_word_embeddings": "tie" in changes})
    reference = DeepseekV3ForCausalLM(config).eval()
    loaded = []
    for original in (True, False):
        directory = tmp_path / str(original)
        reference.save_pretrained(directory, save_original_format=original)
        stacked = [name for name in load_file(directory / SINGLE) if name.endswith("experts.gate_up_proj")]
        assert bool(stacked) == (not original)
        loaded.append(load_model(directory))
        torch.testing.assert_close(logits(loaded[-1]), reference(IDS).logits[0], atol=1e-4, rtol=0)
    assert torch.equal(*map(logits, loaded))


@pytest.mark.parametrize("keep", [0, 5, 5_000, -1])
def test_a_truncated_file_is_named(tmp_path, keep):
    save_model(tiny(), tmp_path)
    content = (tmp_path / SINGLE).read_bytes()
    (tmp_path / SINGLE).write_bytes(content[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut short .*copy it again"):
        load_model(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    save_model(tiny(), tmp_path, shard_bytes=10_000)
    second = sorted(tmp_path.glob("*.safetensors"))[1]
    second.unlink()
    with pytest.raises(ValueError, match=rf"{second.name} does not exist; copy the whole checkpoint"):
        load_model(tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.raises(ValueError, match=rf"{second.name} does not exist; .* other files count \d+"):
        load_model(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors does not exist; copy the whole checkpoint"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": 5}', "\xff"])
def test_a_garbled_index_is_named(tmp_path, content):
    save_model(tiny(), tmp_path, shard_bytes=10_000)
    (tmp_path / INDEX).write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json is not an index"):
        load_model(tmp_path)
