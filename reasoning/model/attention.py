"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.dispatch import forced, use_triton
from kernels.mla_decode import mla_decode
from kernels.mla_prefill import mla_prefill
from kernels.rope import rope, rope_
from reasoning.config import ModelConfig
from reasoning.model.batch import Batch, Chunks, Decoding, Group
from reasoning.model.norm import RMSNorm
from reasoning.model.rope import softmax_scale

_LORA_EPS = 1e-6  # the low-rank norms do not follow rms_norm_eps


class LatentAttention(nn.Module):
    """Attention whose keys and values are expanded from one cached latent a token.

    The cache keeps, for each position, the normalised latent (`kv_lora_rank` values) and the rotated key part
    that all heads share (`qk_rope_head_dim` values). A long chunk of tokens expands the latents to keys and
    values; a short one instead folds the expansion into its queries and outputs ("absorbed"), so that it reads
    nothing but latents. Both compute the same function, by kernels where `kernels.dispatch` says so.
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
        if cached is not None:
            cached.view(-1, latent.shape[-1]).index_copy_(0, batch.places, latent)
        # Equally long sequences from their start, as in training, are what torch's fused attention is made for.
        by_kernels = use_triton(query, latent) and (cached is not None or forced())
        attend = self._by_kernels if by_kernels else self._by_torch
        return self.o_proj(attend(query, latent, batch, cached))

    def _query(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return rotated queries, [T, heads, nope + rope]."""
        flat = self.q_proj(x) if hasattr(self, "q_proj") else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        query = flat.unflatten(-1, (self.heads, -1))
        plain, rotary = query.split((self.nope, self.rope), dim=-1)
        if torch.is_grad_enabled():
            return torch.cat((plain, rope(rotary, cos, sin)), dim=-1)
        rope_(rotary, cos, sin)
        return query

    def _latent(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return what the cache keeps of each token, [T, rank + rope]."""
        latent, rotary = self.kv_a_proj_with_mqa(x).split((self.rank, self.rope), dim=-1)
        return torch.cat((self.kv_a_layernorm(latent), rope(rotary, cos, sin)), dim=-1)

    def _by_kernels(self, query: Tensor, latent: Tensor, batch: Batch, cached: Tensor | None) -> Tensor:
        """Attend with all of a batch: [T, heads, ...] and [T, latent_size] -> [T, heads * value]."""
        if len(batch.parts) == 1:
            return self._attend_part(query, latent, batch.parts[0], cached)
        out = query.new_empty(len(query), self.heads * self.value)
        for part in batch.parts:
            out[part.tokens] = self._attend_part(query[part.tokens], latent[part.tokens], part, cached)
        return out

    def _attend_part(self, query: Tensor, latent: Tensor, part: Decoding | Chunks, cached: Tensor | None) -> Tensor:
        if cached is None:
            assert isinstance(part, Chunks), "without a cache there is no decoding"
            return self._by_prefill(query, latent, part)
        if isinstance(part, Decoding):
            folded = self._fold(query)
            return self._unfold(
                mla_decode(folded, part.queries, cached, part.pages, part.lengths, self.rank, self.scale)
            )
        return self._by_prefill(query, cached.view(-1, latent.shape[-1])[part.places], part)

    def _by_prefill(self, query: Tensor, context: Tensor, part: Chunks) -> Tensor:
        """Attend contexts [S, latent_size], laid end to end, by their keys and values."""
        latent, rotary = context.split((self.rank, self.rope), dim=-1)
        key, value = self._keys_values(latent)
        return mla_prefill(query, part.queries, key, rotary, value, part.contexts, self.scale).flatten(1)

    def _by_torch(self, query: Tensor, latent: Tensor, batch: Batch, cached: Tensor | None) -> Tensor:
        """Do what `_by_kernels` does, by torch's operators."""
        if cached is None:
            return self._from_start(query, latent, len(batch.lengths))
        out = query.new_empty(len(query), self.heads * self.value)
        for group in batch.groups:
            tokens = group.tokens.flatten()
            out[tokens] = self._attend(query[tokens], latent[tokens], group, cached)
        return out

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
        plain, value = (part.transpose(1, 2) for part in self._keys_values(latent))
        return torch.cat((plain, rotary[:, None].expand(-1, self.heads, -1, -1)), dim=-1), value

    def _keys_values(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Expand latents [..., rank] to the heads' own part of the keys, [..., heads, nope], and their values."""
        return self.kv_b_proj(latent).unflatten(-1, (self.heads, -1)).split((self.nope, self.value), dim=-1)

    def _absorbed(self, query: Tensor, context: Tensor, masked: Tensor) -> Tensor:
        """Do the same over latents alone."""
        folded = self._fold(query) * self.scale
        scores = folded.view(len(context), -1, context.shape[-1]) @ context.transpose(1, 2)  # [b, n * heads, S]
        hidden = masked.repeat_interleave(self.heads, dim=1)
        mixed = scores.masked_fill_(hidden, float("-inf")).softmax(dim=-1) @ context[..., : self.rank]
        return self._unfold(mixed.view(-1, self.heads, self.rank))

    def _fold(self, query: Tensor) -> Tensor:
        """Apply the expansion of keys to queries [T, heads, nope + rope] instead: [T, heads, rank + rope]."""
        plain, rotary = query.split((self.nope, self.rope), dim=-1)
        return torch.cat(((plain.transpose(0, 1) @ self._expansions()[0]).transpose(0, 1), rotary), dim=-1)

    def _unfold(self, mixed: Tensor) -> Tensor:
        """Apply the expansion of values to mixed latents [T, heads, rank] instead: [T, heads * value]."""
        return (mixed.transpose(0, 1) @ self._expansions()[1].transpose(1, 2)).transpose(0, 1).flatten(1)

    def _expansions(self) -> tuple[Tensor, Tensor]:
        """Matrices of each head from latents to keys, [heads, nope, rank], and values, [heads, value, rank]."""
        return self.kv_b_proj.weight.unflatten(0, (self.heads, -1)).split((self.nope, self.value), dim=1)
