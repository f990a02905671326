"""fp8 weights with block scales, as published checkpoints store them, load as what they stand for."""

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
def test_fp8_blocks_are_dequantised(tmp_path, hidden, width, block, configured, scale_name):
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


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (unscaled, r"lm_head\.weight is fp8 but lm_head\.weight_scale_inv is absent"),
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
