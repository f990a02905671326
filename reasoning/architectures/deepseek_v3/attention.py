"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.dispatch import forced, use_triton
from kernels.mla_decode import mla_decode
from kernels.mla_prefill import mla_prefill
from kernels.rope import rope, rope_
from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.model.batch import Batch, Chunks, Decoding, Group
from reasoning.model.norm import RMSNorm
from reasoning.model.rope import softmax_scale

_LORA_EPS = 1e-6  # the low-rank norms do not follow rms_norm_eps


class LatentAttention(nn.Module):
    """Attention whose keys and values are expanded from a single cached latent for each token.

    The cache keeps, for each position, the normalised latent (`kv_lora_rank` values) and the rotated part of the key
    that all heads share (`qk_rope_head_dim` values). A long chunk of tokens expands the latents to keys and values; a
    short chunk folds the expansion into its queries and outputs instead ("absorbed"), so that it reads latents alone.
    Both compute the same function, with kernels where `kernels.dispatch` chooses them.
    """

    def __init__(self, config: DeepseekV3Config):
        super().__init__()
        hidden, heads = config.hidden_size, config.num_attention_heads
        self.heads, self.rank = heads, config.kv_lora_rank
        self.nope, self.rope, self.value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        # For each position of a long context: multiplications to expand it, divided by the extra cost of an absorbed
        # token. Chunks of more tokens than that are worth the expansion.
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
        self.key_expansion = nn.Parameter(torch.empty(heads, self.nope, self.rank))
        self.value_expansion = nn.Parameter(torch.empty(heads, self.value, self.rank))
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
        # Torch's fused attention is made for equally long sequences from their start, as in training.
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
        """Return the cached state of each token, [T, rank + rope]."""
        latent, rotary = self.kv_a_proj_with_mqa(x).split((self.rank, self.rope), dim=-1)
        return torch.cat((self.kv_a_layernorm(latent), rope(rotary, cos, sin)), dim=-1)

    def _by_kernels(self, query: Tensor, latent: Tensor, batch: Batch, cached: Tensor | None) -> Tensor:
        """Attend with the whole batch: [T, heads, ...] and [T, latent_size] -> [T, heads * value]."""
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
        """Attend to contexts [S, latent_size], laid end to end, by their keys and values."""
        latent, rotary = context.split((self.rank, self.rope), dim=-1)
        key, value = self._keys_values(latent)
        return mla_prefill(query, part.queries, key, rotary, value, part.contexts, self.scale).flatten(1)

    def _by_torch(self, query: Tensor, latent: Tensor, batch: Batch, cached: Tensor | None) -> Tensor:
        """Do what `_by_kernels` does, with torch's operators."""
        if cached is None:
            return self._expanded(query, self._expand(latent), len(batch.lengths))
        out = query.new_empty(len(query), self.heads * self.value)
        if fresh := [group for group in batch.groups if group.seen is None]:
            key, value = self._expand(latent)
            for tokens, count in ((group.tokens.flatten(), len(group.tokens)) for group in fresh):
                out[tokens] = self._expanded(query[tokens], (key[tokens], value[tokens]), count)
        continued = [group for group in batch.groups if group.seen is not None]
        for group in continued:
            if not self._absorbs(group):
                context, tokens = group.contexts(cached), group.tokens.flatten()
                expansion = self._expand(context.flatten(0, 1))
                out[tokens] = self._expanded(query[tokens], expansion, len(context), group.seen)
        if short := [group for group in continued if self._absorbs(group)]:
            tokens = torch.cat([group.tokens.flatten() for group in short])
            out[tokens] = self._absorbed(query[tokens], short, cached)
        return out

    def _absorbs(self, group: Group) -> bool:
        return group.tokens.shape[1] < self.worth_expanding

    def _expand(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Expand latents [S, rank + rope] to keys [S, heads, nope + rope] and values [S, heads, value]."""
        latent, rotary = context.split((self.rank, self.rope), dim=-1)
        plain, value = self._keys_values(latent)
        return torch.cat((plain, rotary[:, None].expand(-1, self.heads, -1)), dim=-1), value

    def _keys_values(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Expand latents [S, rank] to each head's part of the keys, [S, heads, nope], and its values."""
        key, value = (F.linear(latent, each.flatten(0, 1)) for each in (self.key_expansion, self.value_expansion))
        return key.unflatten(-1, (self.heads, -1)), value.unflatten(-1, (self.heads, -1))

    def _expanded(
        self, query: Tensor, expansion: tuple[Tensor, Tensor], count: int, seen: Tensor | None = None
    ) -> Tensor:
        """Attend to the keys and values of `count` equally long contexts; causally, with S = n, if `seen` is None.

        Queries [count * n, heads, ...] and `expansion` of [count * S, heads, ...] -> [count * n, heads * value].
        """
        key, value = expansion
        # The CPU's fused kernel needs values as wide as keys.
        padded = F.pad(value, (0, max(0, key.shape[-1] - self.value)))
        q, k, v = (part.unflatten(0, (count, -1)).transpose(1, 2) for part in (query, key, padded))
        mask = None if seen is None else seen[:, None]
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=self.scale)
        return out[..., : self.value].transpose(1, 2).flatten(0, 1).flatten(1)

    def _absorbed(self, query: Tensor, groups: list[Group], cached: Tensor) -> Tensor:
        """Attend to latents with the tokens of some groups: [t, heads, ...] -> [t, heads * value], end to end."""
        folded = self._fold(query).split([group.tokens.numel() for group in groups])
        parts = zip(folded, groups, strict=True)
        return self._unfold(torch.cat([self._mix(part, group, cached) for part, group in parts]))

    def _mix(self, folded: Tensor, group: Group, cached: Tensor) -> Tensor:
        """Average the latents that a group's folded queries [b * n, heads, latent_size] see: [b * n, heads, rank]."""
        assert group.seen is not None, "a group from the start uses keys and values"
        context = group.contexts(cached)[:, None]
        query = folded.reshape(len(context), 1, -1, folded.shape[-1])  # [b, 1, n * heads, latent_size]
        seen = group.seen[:, :, None].expand(-1, -1, self.heads, -1).flatten(1, 2)[:, None]
        # The rotary part is averaged too: leaving it out would copy the contexts.
        mixed = F.scaled_dot_product_attention(query, context, context, seen, scale=self.scale)
        return mixed.reshape(folded.shape)[..., : self.rank]

    def _fold(self, query: Tensor) -> Tensor:
        """Apply the expansion of keys to the queries instead: [T, heads, nope + rope] -> [T, heads, rank + rope]."""
        plain, rotary = query.split((self.nope, self.rope), dim=-1)
        return torch.cat(((plain.transpose(0, 1) @ self.key_expansion).transpose(0, 1), rotary), dim=-1)

    def _unfold(self, mixed: Tensor) -> Tensor:
        """Apply the expansion of values to mixed latents instead: [T, heads, rank] -> [T, heads * value]."""
        return (mixed.transpose(0, 1) @ self.value_expansion.transpose(1, 2)).transpose(0, 1).flatten(1)
