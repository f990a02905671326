"""Weights arranged for the CPU: other memory order, same shapes, values and files; packed ones where it pays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reasoning.architectures.deepseek_v3.backbone import DeepseekV3Backbone
from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.checkpoint.load import load_model
from reasoning.checkpoint.save import save_model
from reasoning.model.batch import Batch
from reasoning.model.cpu_weights import PackedLinear, pack_for_cpu
from tests.reasoning.architectures.deepseek_v3.conftest import SMALL

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")


@torch.inference_mode()
def test_a_loaded_model_is_input_major_and_computes_the_same(tmp_path):
    model = DeepseekV3Backbone(DeepseekV3Config.from_dict(SMALL)).initialise(torch.Generator().manual_seed(0)).eval()
    save_model(model, tmp_path / "first", dtype=torch.float32)
    loaded = load_model(tmp_path / "first")
    untouched = ("gate.weight", "embed_tokens.weight", "_expansion")
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])
        assert name.endswith(untouched) or weight.ndim < 2 or weight.stride(-2) == 1, name
    batch = Batch.of_whole_sequences(torch.arange(24).view(2, 12))
    torch.testing.assert_close(loaded.logits(loaded(batch)), model.logits(model(batch)), atol=1e-5, rtol=0)
    save_model(loaded, tmp_path / "second", dtype=torch.float32)
    same = (tmp_path / name / "model.safetensors" for name in ("first", "second"))
    assert next(same).read_bytes() == next(same).read_bytes()


def test_a_tied_head_keeps_the_order_that_embedding_reads(tmp_path):
    save_model(DeepseekV3Backbone(DeepseekV3Config.from_dict({**SMALL, "tie_word_embeddings": True})), tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.lm_head.weight is loaded.embed_tokens.weight
    assert loaded.embed_tokens.weight.is_contiguous()


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 5, 33])
@torch.inference_mode()
def test_a_product_is_that_of_the_layer(rows, dtype):
    linear = nn.Linear(72, 40, bias=False).to(dtype)
    linear.weight.data = linear.weight.data.t().contiguous().t()  # as a loaded model has it
    x = torch.randn(rows, 2 * 72).to(dtype)[:, :72]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(PackedLinear(linear)(x), linear(x), atol=tolerance, rtol=tolerance)


@needs_onednn
@torch.inference_mode()
def test_a_model_in_bf16_computes_the_same_with_all_its_linear_layers_packed():
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN does no bf16 on this processor")
    config = DeepseekV3Config.from_dict({**SMALL, "tie_word_embeddings": True})
    model = DeepseekV3Backbone(config).initialise(torch.Generator().manual_seed(0)).eval().bfloat16()
    batch = Batch.of_whole_sequences(torch.arange(24).view(2, 12))
    expected, embedded = model.logits(model(batch)), model.embed_tokens.weight.clone()
    pack_for_cpu(model)
    assert not [module for module in model.modules() if isinstance(module, nn.Linear)]
    torch.testing.assert_close(model.logits(model(batch)), expected, atol=2e-2, rtol=2e-2)
    assert torch.equal(model.embed_tokens.weight, embedded)


@needs_onednn
def test_in_fp32_only_large_matrices_are_packed():
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(1 << 8, 1 << 14, bias=False))
    pack_for_cpu(model)
    assert [type(layer) for layer in model] == [nn.Linear, PackedLinear]
