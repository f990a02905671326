"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.rope import rope
from reasoning.config import ModelConfig
from reasoning.model.batch import Batch, Group
from reasoning.model.norm import RMSNorm
from reasoning.model.rope import softmax_scale

_LORA_EPS = 1e-6  # the low-rank norms do not follow rms_norm_eps


class LatentAttention(nn.Module):
    """Attention whose keys and values are expanded from one cached latent a token.

    The cache keeps, for each position, the normalised latent (`kv_lora_rank` values) and the rotated key part
    that all heads share (`qk_rope_head_dim` values). A long chunk of tokens expands the latents to keys and
    values; a short one instead folds the expansion into its queries and outputs ("absorbed"), so that it reads
    nothing but latents. Both compute the same function.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        hidden, heads = config.hidden_size, config.num_attention_heads
        self.heads, self.rank = heads, config.kv_lora_rank
        self.nope, self.rope, self.value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        # Multiplications for each position of a long context: to expand it, over what each absorbed token costs more.
        self.worth_expanding = self.rank * (self.nope + self.value) / max(1, 2 * self.rank - self.nope - self.value)
        self.scale = softmax_scale(self.nope + self.rope, config.rope)
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, heads * (self.nope + self.rope), bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, config.q_lora_rank, bias=False)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, eps=_LORA_EPS)
            self.q_b_proj = nn.Linear(config.q_lora_rank, heads * (self.nope + self.rope), bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, self.rank + self.rope, bias=False)
        self.kv_a_layernorm = RMSNorm(self.rank, eps=_LORA_EPS)
        self.kv_b_proj = nn.Linear(self.rank, heads * (self.nope + self.value), bias=False)
        self.o_proj = nn.Linear(heads * self.value, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, batch: Batch, cached: Tensor | None) -> Tensor:
        """Attend causally within each sequence.

        Args:
            x: [T, hidden].
            cos: [T, rope / 2] of each token's position.
            sin: like `cos`.
            batch: how the T tokens divide into sequences.
            cached: this layer's [pages, PAGE_TOKENS, latent_size], read and extended; None when every sequence starts
                here and all are equally long.

        Returns:
            [T, hidden].
        """
        query, latent = self._query(x, cos, sin), self._latent(x, cos, sin)
        if cached is None:
            return self.o_proj(self._from_start(query, latent, len(batch.lengths)))
        cached.view(-1, latent.shape[-1]).index_copy_(0, batch.places, latent)
        out = query.new_empty(len(x), self.heads * self.value)
        for group in batch.groups:
            tokens = group.tokens.flatten()
            out[tokens] = self._attend(query[tokens], latent[tokens], group, cached)
        return self.o_proj(out)

    def _query(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return rotated queries, [T, heads, nope + rope]."""
        flat = self.q_proj(x) if hasattr(self, "q_proj") else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        plain, rotary = flat.unflatten(-1, (self.heads, -1)).split((self.nope, self.rope), dim=-1)
        return torch.cat((plain, rope(rotary, cos, sin)), dim=-1)

    def _latent(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return what the cache keeps of each token, [T, rank + rope]."""
        latent, rotary = self.kv_a_proj_with_mqa(x).split((self.rank, self.rope), dim=-1)
        return torch.cat((self.kv_a_layernorm(latent), rope(rotary, cos, sin)), dim=-1)

    def _attend(self, query: Tensor, latent: Tensor, group: Group, cached: Tensor) -> Tensor:
        """Attend with a group's tokens: [b * n, heads, ...] and [b * n, latent_size] -> [b * n, heads * value]."""
        count, length = group.tokens.shape
        if group.context is None or group.masked is None:
            return self._from_start(query, latent, count)
        width = cached.shape[-1]
        context = cached.view(-1, width).index_select(0, group.context.flatten()).view(count, -1, width)
        attend = self._absorbed if length < self.worth_expanding else self._expanded
        return attend(query, context, group.masked)

    def _from_start(self, query: Tensor, latent: Tensor, count: int) -> Tensor:
        """Attend within `count` sequences that begin here."""
        return self._expanded(query, latent.unflatten(0, (count, -1)), None)

    def _expanded(self, query: Tensor, context: Tensor, masked: Tensor | None) -> Tensor:
        """Attend contexts [b, S, latent_size] by their keys and values; causally, S = n, where `masked` is None."""
        key, value = self._expand(context)
        query = query.unflatten(0, (len(context), -1)).transpose(1, 2)
        # The CPU's fused kernel asks for values as wide as keys.
        padded = F.pad(value, (0, max(0, key.shape[-1] - self.value)))
        seen = None if masked is None else ~masked[:, None]
        out = F.scaled_dot_product_attention(query, key, padded, seen, is_causal=seen is None, scale=self.scale)
        return out[..., : self.value].transpose(1, 2).flatten(0, 1).flatten(1)

    def _expand(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Expand latents [b, S, rank + rope] to keys [b, heads, S, nope + rope] and values."""
        latent, rotary = context.split((self.rank, self.rope), dim=-1)
        expanded = self.kv_b_proj(latent).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        plain, value = expanded.split((self.nope, self.value), dim=-1)
        return torch.cat((plain, rotary[:, None].expand(-1, self.heads, -1, -1)), dim=-1), value

    def _absorbed(self, query: Tensor, context: Tensor, masked: Tensor) -> Tensor:
        """Do the same over latents alone, `kv_b_proj` applied to queries and outputs instead: [h, b * n, ...]."""
        to_key, to_value = self.kv_b_proj.weight.unflatten(0, (self.heads, -1)).split((self.nope, self.value), dim=1)
        plain, rotary = query.split((self.nope, self.rope), dim=-1)
        folded = torch.cat(((plain.transpose(0, 1) @ to_key).transpose(0, 1), rotary), dim=-1) * self.scale
        scores = folded.view(len(context), -1, context.shape[-1]) @ context.transpose(1, 2)  # [b, n * heads, S]
        hidden = masked.repeat_interleave(self.heads, dim=1)
        mixed = scores.masked_fill_(hidden, float("-inf")).softmax(dim=-1) @ context[..., : self.rank]
        mixed = mixed.view(-1, self.heads, self.rank).transpose(0, 1)
        return (mixed @ to_value.transpose(1, 2)).transpose(0, 1).flatten(1)
