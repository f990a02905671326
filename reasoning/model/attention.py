"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reasoning.config import ModelConfig
from reasoning.model.batch import Batch
from reasoning.model.rope import rotate, softmax_scale

_LORA_EPS = 1e-6  # the low-rank norms do not follow rms_norm_eps


class LatentAttention(nn.Module):
    """Attention whose keys and values are expanded from one cached latent a token.

    The cache keeps, for each position, the normalised latent (`kv_lora_rank` values) and the rotated key part
    that all heads share (`qk_rope_head_dim` values). A chunk of several tokens expands the latents to keys and
    values; a single token instead folds the expansion into its query and its output ("absorbed"), so that it
    reads nothing but latents. Both compute the same function.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        hidden, heads = config.hidden_size, config.num_attention_heads
        self.heads, self.rank = heads, config.kv_lora_rank
        self.nope, self.rope, self.value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.scale = softmax_scale(self.nope + self.rope, config.rope)
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, heads * (self.nope + self.rope), bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, config.q_lora_rank, bias=False)
            self.q_a_layernorm = nn.RMSNorm(config.q_lora_rank, eps=_LORA_EPS)
            self.q_b_proj = nn.Linear(config.q_lora_rank, heads * (self.nope + self.rope), bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, self.rank + self.rope, bias=False)
        self.kv_a_layernorm = nn.RMSNorm(self.rank, eps=_LORA_EPS)
        self.kv_b_proj = nn.Linear(self.rank, heads * (self.nope + self.value), bias=False)
        self.o_proj = nn.Linear(heads * self.value, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, batch: Batch, cached: Tensor | None) -> Tensor:
        """Attend causally within each sequence.

        Args:
            x: [T, hidden].
            cos: [T, rope / 2] of each token's position.
            sin: like `cos`.
            batch: how the T tokens divide into sequences.
            cached: [slots, context, latent_size], read and extended; None when every sequence starts here
                and all are equally long.

        Returns:
            [T, hidden].
        """
        query = self._query(x, cos, sin)
        latent = self._latent(x, cos, sin)
        if cached is None:
            out = self._whole(query, latent, len(batch.lengths))
        else:
            out = self._extend(query, latent, batch, cached)
        return self.o_proj(out.flatten(1))

    def _query(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return rotated queries, [T, heads, nope + rope]."""
        flat = self.q_proj(x) if hasattr(self, "q_proj") else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        plain, rotary = flat.unflatten(-1, (self.heads, -1)).split((self.nope, self.rope), dim=-1)
        return torch.cat((plain, rotate(rotary, cos[:, None], sin[:, None])), dim=-1)

    def _latent(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return what the cache keeps of each token, [T, rank + rope]."""
        latent, rotary = self.kv_a_proj_with_mqa(x).split((self.rank, self.rope), dim=-1)
        return torch.cat((self.kv_a_layernorm(latent), rotate(rotary, cos, sin)), dim=-1)

    def _expand(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Expand latents [..., S, rank + rope] to keys [..., heads, S, nope + rope] and values."""
        latent, rotary = latents.split((self.rank, self.rope), dim=-1)
        expanded = self.kv_b_proj(latent).unflatten(-1, (self.heads, -1)).transpose(-3, -2)
        plain, value = expanded.split((self.nope, self.value), dim=-1)
        shared = rotary.unsqueeze(-3).expand(*plain.shape[:-1], self.rope)
        return torch.cat((plain, shared), dim=-1), value

    def _whole(self, query: Tensor, latent: Tensor, count: int) -> Tensor:
        key, value = self._expand(latent.unflatten(0, (count, -1)))
        query = query.unflatten(0, (count, -1)).transpose(1, 2)
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.scale)
        return out.transpose(1, 2).flatten(0, 1)

    def _extend(self, query: Tensor, latent: Tensor, batch: Batch, cached: Tensor) -> Tensor:
        offsets, single = batch.offsets, []
        out = query.new_empty(query.shape[0], self.heads, self.value)
        for i, (slot, start, length) in enumerate(zip(batch.slots, batch.starts, batch.lengths, strict=True)):
            here = slice(offsets[i], offsets[i + 1])
            cached[slot, start : start + length] = latent[here]
            if length == 1:
                single.append(i)
            else:
                out[here] = self._chunk(query[here], cached[slot, : start + length])
        if single:
            rows = [offsets[i] for i in single]
            out[rows] = self._absorbed(query[rows], cached, [(batch.slots[i], batch.starts[i] + 1) for i in single])
        return out

    def _chunk(self, query: Tensor, context: Tensor) -> Tensor:
        """Attend the last tokens of `context` ([S, latent_size]) with `query` ([n, heads, ...])."""
        key, value = self._expand(context)
        mask = torch.ones(len(query), len(context), dtype=torch.bool, device=query.device)
        mask = mask.tril(len(context) - len(query))
        query = query.transpose(0, 1)[None]
        out = F.scaled_dot_product_attention(query, key[None], value[None], attn_mask=mask, scale=self.scale)
        return out[0].transpose(0, 1)

    def _absorbed(self, query: Tensor, cached: Tensor, places: list[tuple[int, int]]) -> Tensor:
        """Attend one token of each of B sequences, given as (slot, context length), over latents alone."""
        slots, lengths = zip(*places, strict=True)
        context = cached[list(slots), : max(lengths)]  # [B, S, rank + rope]
        to_key, to_value = self.kv_b_proj.weight.unflatten(0, (self.heads, -1)).split((self.nope, self.value), dim=1)
        plain, rotary = query.split((self.nope, self.rope), dim=-1)
        folded = torch.cat((torch.einsum("bhn,hnr->bhr", plain, to_key), rotary), dim=-1)
        scores = torch.einsum("bhr,bsr->bhs", folded, context) * self.scale
        beyond = torch.arange(max(lengths), device=query.device) >= torch.tensor(lengths, device=query.device)[:, None]
        weights = scores.masked_fill(beyond[:, None], float("-inf")).softmax(dim=-1)
        mixed = torch.einsum("bhs,bsr->bhr", weights, context[..., : self.rank])
        return torch.einsum("bhr,hvr->bhv", mixed, to_value)
