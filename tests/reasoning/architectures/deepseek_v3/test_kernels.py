"""The model by kernels, forced, is the model by torch's references: attention of any batch, and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from reasoning.architectures.deepseek_v3.attention import LatentAttention
from reasoning.architectures.deepseek_v3.backbone import DeepseekV3Backbone
from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.model.batch import PAGE_TOKENS, Batch
from tests.reasoning.architectures.deepseek_v3.conftest import SMALL

pytest.importorskip("triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TINY = {
    **SMALL,
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "kv_lora_rank": 16,
    "q_lora_rank": 12,
    "engram_layer_ids": [1],
    "engram_n_heads": 2,
    "engram_head_dim": 8,
    "engram_vocab_size": 101,
    "engram_conv_kernel": 3,
}


@pytest.fixture
def both_ways(monkeypatch):
    """Function that calls another with references forced, then with kernels forced and no reference to fall back on."""

    def run(function):
        monkeypatch.setenv("ENGRAM_KERNELS", "torch")
        expected = function()
        monkeypatch.setenv("ENGRAM_KERNELS", "triton")
        monkeypatch.delattr(LatentAttention, "_by_torch")
        monkeypatch.delattr(F, "rms_norm")
        monkeypatch.delattr(F, "grouped_mm")
        return expected, function()

    return run


@pytest.mark.parametrize(
    ("lengths", "starts"),
    [((1, 8, 3, 1), (0, 60, 64, 130)), ((9, 20), (0, 70)), ((1, 12, 4, 30), (99, 0, 0, 63))],
    ids=["decoding", "chunks", "both"],
)
@torch.inference_mode()
def test_attention_is_that_by_torch(both_ways, lengths, starts):
    config = DeepseekV3Config.from_dict(TINY)
    attention = LatentAttention(config).to(DEVICE)
    for expansion in (attention.key_expansion, attention.value_expansion):
        expansion.normal_(0, 0.2)
    pages = tuple((5 * i + 2, 5 * i, 5 * i + 4) for i in range(len(lengths)))
    batch = Batch(torch.zeros(sum(lengths), dtype=torch.int64, device=DEVICE), lengths, starts, pages)
    x = torch.randn(sum(lengths), config.hidden_size, device=DEVICE)
    cos, sin = torch.randn(2, len(x), config.qk_rope_head_dim // 2, device=DEVICE)
    latents = torch.full((5 * len(lengths), PAGE_TOKENS, config.latent_size), float("nan"), device=DEVICE)
    for own, start in zip(pages, starts, strict=True):
        for position in range(start):
            latents[own[position // PAGE_TOKENS], position % PAGE_TOKENS].normal_()
    expected, got = both_ways(lambda: attention(x, cos, sin, batch, latents.clone()))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_gradients_are_those_by_torch(both_ways):
    config = DeepseekV3Config.from_dict(TINY)
    model = DeepseekV3Backbone(config).initialise(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.layers[1].engram.conv.weight, 0, 0.3)  # zero, as initialised, would hide it
    model.to(DEVICE)
    ids = torch.randint(0, 40, (2, 7), device=DEVICE)
    rows = torch.randn(12, config.engram.width, device=DEVICE, requires_grad=True)
    leaves = {"rows": rows, **dict(model.named_parameters())}

    def gradients():
        hidden = model(Batch.of_whole_sequences(ids[:, :-1]), lambda _: rows)
        loss = F.cross_entropy(model.logits(hidden), ids[:, 1:].reshape(-1))
        return torch.autograd.grad(loss, list(leaves.values()))

    for name, expected, got in zip(leaves, *both_ways(gradients), strict=True):
        assert expected.abs().max() > 0, name
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")
