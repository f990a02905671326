"""The backbone: DeepSeek-V3 decoder layers, some with an Engram memory in front."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from reasoning.architectures.deepseek_v3.attention import LatentAttention
from reasoning.architectures.deepseek_v3.config import ModelConfig
from reasoning.architectures.deepseek_v3.moe import MixtureOfExperts, SwiGLU
from reasoning.architectures.deepseek_v3.mtp import MultiTokenPrediction
from reasoning.model.batch import Batch, Cache
from reasoning.model.engram import Engram
from reasoning.model.norm import RMSNorm
from reasoning.model.rope import cos_sin_table

RowSource = Callable[[int], Tensor]
"""Layer -> that layer's rows for the batch, [T, C * D]. Called when the layer needs them; it may wait."""


class DecoderLayer(nn.Module):
    """Memory (where configured), attention, feed-forward, each added to the hidden state."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.engram = Engram(config) if layer in config.engram_layer_ids else None
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = LatentAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        dense = layer < config.first_k_dense_replace
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size) if dense else MixtureOfExperts(config)

    def forward(
        self, h: Tensor, cos: Tensor, sin: Tensor, batch: Batch, rows: RowSource | None, cache: Cache | None
    ) -> Tensor:
        """[T, hidden] -> [T, hidden]; the arguments are those of `Transformer.forward` and the tokens' rotations."""
        if self.engram is not None and rows is not None:
            history = None if cache is None else cache.conv.get(self.layer)
            h = self.engram(h[:, None], rows(self.layer), batch, history)[:, 0]
        latents = None if cache is None else cache.latents[self.layer]
        attended = self.self_attn(self.input_layernorm(h), cos, sin, batch, latents)
        normed, h = self.post_attention_layernorm.of_sum(attended, h)
        return h + self.mlp(normed)


class Transformer(nn.Module):
    """Token ids in, hidden states out; `logits` turns chosen hidden states into scores over the vocabulary."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.mtp = _mtp(config) if config.num_nextn_predict_layers else None
        cos, sin = cos_sin_table(config.rope, config.qk_rope_head_dim, config.max_position_embeddings)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, batch: Batch, rows: RowSource | None = None, cache: Cache | None = None) -> Tensor:
        """Run the batch through every layer.

        Args:
            batch: T tokens of B sequences.
            rows: the memory's rows; None leaves the memory out.
            cache: extended with the batch; None when all sequences start here, equally long.

        Returns:
            Final normalised hidden states, [T, hidden].
        """
        positions = batch.positions
        cos, sin = self.cos[positions], self.sin[positions]
        h = self.embed_tokens(batch.token_ids)
        for layer in self.layers:
            h = layer(h, cos, sin, batch, rows, cache)
        return self.norm(h)

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] -> [n, vocabulary]."""
        return self.lm_head(hidden)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> Transformer:
        """Draw every matrix from N(0, initializer_range); norms stay one and convolutions zero."""
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and "conv" not in name and not name.endswith(("q_weight", "k_weight")):
                parameter.normal_(0.0, self.config.initializer_range, generator=generator)
        return self


def _mtp(config: ModelConfig) -> MultiTokenPrediction:
    return MultiTokenPrediction(config, DecoderLayer(config, config.num_hidden_layers))
