"""Attention of a few tokens a sequence over the paged latents of their contexts (arXiv 2405.04434, section 2.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.dispatch import use_triton
from kernels.spans import Spans


@torch.no_grad()
def mla_decode(
    query: Tensor, queries: Spans, latents: Tensor, pages: Tensor, lengths: Tensor, rank: int, scale: float
) -> Tensor:
    """Attend latents with absorbed queries, into which key expansion is folded. For inference: no gradient.

    A latent is key and, by its first `rank` values, value of all heads. The tokens of a sequence are the last of its
    context and attend causally: with one token each this is decoding, with several it checks drafts.

    Args:
        query: [T, heads, rank + rope].
        queries: how the T tokens divide into B sequences.
        latents: one layer of the cache, [pages, page tokens, rank + rope]; page tokens are a multiple of 64. Positions
            that no sequence has reached may hold anything.
        pages: [B, P] integers: position p of sequence b lies in page `pages[b, p // page tokens]`. Entries beyond a
            sequence's length are not read.
        lengths: [B] int64, the context of each sequence, its T tokens included.
        rank: values of a latent without the rotary part.
        scale: multiplies scores.

    Returns:
        [T, heads, rank] in the dtype of `query`; the caller expands it to values.
    """
    if use_triton(query, latents):
        from kernels.gpu.mla_decode import decode

        return decode(query, queries, latents, pages, lengths, rank, scale)
    out = query.new_empty(*query.shape[:2], rank)
    bounds = queries.offsets.tolist()
    for b, length in enumerate(lengths.tolist()):
        here = slice(bounds[b], bounds[b + 1])
        context = latents[pages[b, : -(-length // latents.shape[1])]].flatten(0, 1)[:length].float()
        scores = torch.einsum("nhr,sr->hns", query[here].float(), context) * scale
        seen = torch.ones_like(scores[0], dtype=torch.bool).tril(length - scores.shape[1])
        weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
        out[here] = torch.einsum("hns,sr->nhr", weights, context[:, :rank]).to(out.dtype)
    return out
