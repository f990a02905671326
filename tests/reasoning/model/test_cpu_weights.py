"""Weights laid out for the CPU: other memory order, same shapes, values and files."""

from __future__ import annotations

import torch

from reasoning.architectures.deepseek_v3.backbone import DeepseekV3Backbone
from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.checkpoint.load import load_model
from reasoning.checkpoint.save import save_model
from reasoning.model.batch import Batch
from tests.reasoning.architectures.deepseek_v3.conftest import SMALL


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
