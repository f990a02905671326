"""A decoder layer of DeepSeek-V3, with an Engram memory in front where the configuration names the layer."""

from __future__ import annotations

from torch import Tensor, nn

from reasoning.architectures.base import RowSource
from reasoning.architectures.deepseek_v3.attention import LatentAttention
from reasoning.architectures.deepseek_v3.cache import LatentCache
from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.architectures.deepseek_v3.moe import MixtureOfExperts
from reasoning.model.batch import Batch
from reasoning.model.engram import Engram
from reasoning.model.norm import RMSNorm
from reasoning.model.swiglu import SwiGLU


class DecoderLayer(nn.Module):
    """Memory (where configured), attention, feed-forward, each added to the hidden state."""

    def __init__(self, config: DeepseekV3Config, layer: int):
        super().__init__()
        self.layer = layer
        hidden, eps, memory = config.hidden_size, config.rms_norm_eps, config.engram
        self.engram = Engram(memory, hidden, eps) if memory is not None and layer in memory.layer_ids else None
        self.input_layernorm = RMSNorm(hidden, eps=eps)
        self.self_attn = LatentAttention(config)
        self.post_attention_layernorm = RMSNorm(hidden, eps=eps)
        dense = layer < config.first_k_dense_replace
        self.mlp = SwiGLU(hidden, config.intermediate_size) if dense else MixtureOfExperts(config)

    def forward(
        self, h: Tensor, cos: Tensor, sin: Tensor, batch: Batch, rows: RowSource | None, cache: LatentCache | None
    ) -> Tensor:
        """[T, hidden] -> [T, hidden]; the arguments are those of `Backbone.forward` and the tokens' rotations."""
        if self.engram is not None and rows is not None:
            history = None if cache is None else cache.conv.get(self.layer)
            h = self.engram(h[:, None], rows(self.layer), batch, history)[:, 0]
        latents = None if cache is None else cache.latents[self.layer]
        attended = self.self_attn(self.input_layernorm(h), cos, sin, batch, latents)
        normed, h = self.post_attention_layernorm.of_sum(attended, h)
        return h + self.mlp(normed)
