"""Packed matrices: the same products, and none where they do not pay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reasoning.architectures.deepseek_v3.backbone import DeepseekV3Backbone
from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.model.batch import Batch
from reasoning.model.cpu_weights import PackedLinear, pack_for_cpu
from tests.reasoning.architectures.deepseek_v3.conftest import SMALL

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 5, 33])
@torch.inference_mode()
def test_a_product_is_that_of_the_layer(rows, dtype):
    linear = nn.Linear(72, 40, bias=False).to(dtype)
    linear.weight.data = linear.weight.data.t().contiguous().t()  # as a loaded model has it
    x = torch.randn(rows, 2 * 72).to(dtype)[:, :72]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(PackedLinear(linear)(x), linear(x), atol=tolerance, rtol=tolerance)


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


def test_in_fp32_only_large_matrices_are_packed():
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(1 << 8, 1 << 14, bias=False))
    pack_for_cpu(model)
    assert [type(layer) for layer in model] == [nn.Linear, PackedLinear]
