"""fp8 weights with scales, as published checkpoints have them, load as what they stand for; other forms are refused."""

from __future__ import annotations

import json

import pytest
import torch

from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.checkpoint.load import load_model
from reasoning.checkpoint.save import save_model
from tests.reasoning.conftest import TINY, change_tensors, random_model

BLOCKS = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}


def save(directory, config, **changes):
    """Write a tiny model, and then some more keys into its config.json."""
    save_model(random_model(DeepseekV3Config.from_dict({**TINY, **changes})), directory, torch.float32)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def quantise(weight, rows, columns):
    """Block scales and fp8 values, the last blocks as ragged as they come; and what they stand for, in fp32."""
    count = (-(-weight.shape[0] // rows), -(-weight.shape[1] // columns))
    scale, quantised, exact = torch.empty(count), torch.empty_like(weight, dtype=torch.float8_e4m3fn), weight.clone()
    for i in range(count[0]):
        for j in range(count[1]):
            here = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
            scale[i, j] = 2.0 ** ((i - 3 * j) % 8 - 8)
            quantised[here] = (weight[here] / scale[i, j]).to(torch.float8_e4m3fn)
            exact[here] = quantised[here].float() * scale[i, j]
    return quantised, scale, exact


@pytest.mark.parametrize(
    ("hidden", "width", "block", "configured"),
    [
        (320, 192, (128, 128), BLOCKS),  # ragged both ways
        (320, 192, (128, 128), {}),
        (136, 104, (128, 128), {}),
        (32, 48, (128, 128), BLOCKS),  # smaller than a block
        (96, 80, (32, 32), BLOCKS),  # blocks of their own
        (320, 192, (1, 128), {"quantization_config": {"weight_block_size": [1, 128]}}),
        (96, 80, (48, 40), {"quantization_config": {"weight_block_size": [48, 40]}}),
    ],
)
@pytest.mark.parametrize("scale_name", ["weight_scale_inv", "scale"])
def test_fp8_weights_are_restored_by_the_scales_of_their_blocks(tmp_path, hidden, width, block, configured, scale_name):
    save(tmp_path, configured, hidden_size=hidden, intermediate_size=width)
    expected = {}

    def pack(tensors):
        for name in [name for name in tensors if "layers.0.mlp" in name]:
            tensors[name], scale, expected[name] = quantise(tensors[name], *block)
            dtype = torch.float32 if scale_name == "weight_scale_inv" else torch.float8_e8m0fnu
            tensors[name.removesuffix("weight") + scale_name] = scale.to(dtype)

    change_tensors(tmp_path, pack)
    loaded = load_model(tmp_path)
    assert len(expected) == 3
    for name, tensor in expected.items():
        assert torch.equal(loaded.get_parameter(name.removeprefix("model.")), tensor)


def unscaled(tensors):
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.float8_e4m3fn)


def misscaled(tensors):
    unscaled(tensors)
    tensors["lm_head.weight_scale_inv"] = torch.ones(7, 1)


def counted(tensors):
    unscaled(tensors)
    tensors["lm_head.weight_scale_inv"] = torch.ones(1, 1, dtype=torch.int32)


def activated(tensors):
    unscaled(tensors)
    tensors |= {"lm_head.weight_scale": torch.ones(()), "lm_head.input_scale": torch.ones(())}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (unscaled, r"lm_head\.weight is fp8 but lm_head\.weight_scale_inv is absent"),
        (counted, r"lm_head\.weight_scale_inv is stored as I32, but scales are F64, F32, F16, BF16, F8_E8M0"),
        (activated, r"lm_head\.input_scale is a scale of activations; quantisation with static .* is not supported"),
        (misscaled, r"lm_head\.weight has shape \(257, 32\) and its scales \(7, 1\), which fit no block size"),
    ],
)
def test_scales_that_do_not_fit_are_named(tmp_path, edit, message):
    save(tmp_path, {})
    change_tensors(tmp_path, edit)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize("block", [128, [128], ["128", 128], [0, 128]], ids=str)
def test_a_block_size_that_is_none_is_refused(tmp_path, block):
    save(tmp_path, {"quantization_config": {"weight_block_size": block}})
    with pytest.raises(ValueError, match=r"quantization_config: weight_block_size .* expected \[rows, columns\]"):
        load_model(tmp_path)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (257,), (257, 1)], ids=str)
@pytest.mark.parametrize("name", ["weight_scale", "weight_scale_inv"])
@pytest.mark.parametrize(
    "config", [{}, {"quant_method": "fp8", "activation_scheme": "dynamic"}], ids=["", "configured"]
)
def test_a_scale_for_the_matrix_or_for_each_channel_is_multiplied_in(tmp_path, shape, name, config):
    save(tmp_path, {"quantization_config": config})
    expected = []

    def pack(tensors):
        quantised, scale = tensors["lm_head.weight"].to(torch.float8_e4m3fn), 0.5 + torch.rand(shape)
        expected.append(quantised.float() * scale.reshape(-1, 1))
        tensors |= {"lm_head.weight": quantised, f"lm_head.{name}": scale}

    change_tensors(tmp_path, pack)
    assert torch.equal(load_model(tmp_path).lm_head.weight, expected[0])


@pytest.mark.parametrize("name", ["weight_scale_inv", "weight_scale", "scale"])
@pytest.mark.parametrize("config", [{}, BLOCKS], ids=["", "configured"])
def test_a_scale_beside_a_wide_weight_is_ignored(tmp_path, name, config):
    save(tmp_path, config)
    expected = load_model(tmp_path).state_dict()
    change_tensors(tmp_path, lambda t: t.update({f"model.layers.0.self_attn.o_proj.{name}": torch.full((1, 1), 0.5)}))
    for weight, tensor in load_model(tmp_path).state_dict().items():
        assert torch.equal(tensor, expected[weight])


def test_stacked_experts_have_their_scales_by_expert(tmp_path):
    save(tmp_path, BLOCKS, hidden_size=136, moe_intermediate_size=104)
    expected = {}

    def stack(tensors):
        for layer in (1, 2):
            base = f"model.layers.{layer}.mlp.experts."
            parts = {k: [tensors.pop(f"{base}{e}.{k}_proj.weight") for e in range(4)] for k in ("gate", "up", "down")}
            gate_up = [torch.cat(pair) for pair in zip(parts["gate"], parts["up"], strict=True)]
            for kind, matrices in (("gate_up", gate_up), ("down", parts["down"])):
                packed = [quantise(matrix, 128, 128) for matrix in matrices]
                quantised, scale, exact = (torch.stack(part) for part in zip(*packed, strict=True))
                tensors |= {f"{base}{kind}_proj": quantised, f"{base}{kind}_proj_scale_inv": scale}
                expected[f"layers.{layer}.mlp.{kind}"] = exact

    change_tensors(tmp_path, stack)
    loaded = load_model(tmp_path)
    assert len(expected) == 4
    for name, tensor in expected.items():
        assert torch.equal(loaded.get_parameter(name), tensor)


def test_blocks_far_beyond_a_matrix_cost_no_memory(tmp_path):
    save(tmp_path, {"quantization_config": {"quant_method": "fp8", "weight_block_size": [10**12, 10**15]}})
    scaled = {"lm_head.weight_scale_inv": torch.full((1, 1), 2.0)}
    change_tensors(
        tmp_path, lambda t: t.update({"lm_head.weight": t["lm_head.weight"].to(torch.float8_e4m3fn), **scaled})
    )
    assert load_model(tmp_path).lm_head.weight.isfinite().all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "awq", "bits": 4}, "quantisation 'awq' is not supported; expected 'fp8'"),
        ({"quant_method": "gptq"}, "quantisation 'gptq' is not supported"),
        ({"quant_method": "compressed-tensors"}, "quantisation 'compressed-tensors' is not supported"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quantisation 'bitsandbytes' is not supported"),
        (
            {"quant_method": "fp8", "activation_scheme": "static"},
            "'fp8' with activation_scheme 'static' is not supported",
        ),
        ({"bits": 4, "group_size": 128}, "quantisation None is not supported"),
        ({"quant_method": ["fp8"] * 1000}, r"quantisation \['fp8', .*\.\.\.\] is not supported"),
        ("fp8", "quantization_config: 'fp8' is not supported; expected an object"),
    ],
)
def test_other_quantisations_are_refused_by_name(tmp_path, config, message):
    save(tmp_path, {"quantization_config": config})
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)
