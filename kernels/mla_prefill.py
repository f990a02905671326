"""Causal attention of chunks of tokens over keys and values expanded from latents (arXiv 2405.04434, section 2.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.dispatch import use_triton
from kernels.spans import Spans


def mla_prefill(
    query: Tensor, queries: Spans, key: Tensor, rotary: Tensor, value: Tensor, contexts: Spans, scale: float
) -> Tensor:
    """Attend causally within each of B sequences, whose tokens are the last of its context. Differentiable.

    Args:
        query: [T, heads, nope + rope].
        queries: how the T tokens divide into sequences.
        key: [S, heads, nope], the contexts end to end; a view into a wider tensor needs no copy.
        rotary: [S, rope], the part of the keys that all heads share.
        value: [S, heads, v], like `key`.
        contexts: how the S positions divide; none is shorter than its sequence's tokens.
        scale: multiplies scores.

    Returns:
        [T, heads, v] in the dtype of `query`.
    """
    if use_triton(query, key, rotary, value):
        from kernels.gpu.mla_prefill import MlaPrefill

        return MlaPrefill.apply(query, key, rotary, value, queries, contexts, scale)
    plain, turned = query.float().split((key.shape[-1], rotary.shape[-1]), dim=-1)
    begins, ends = queries.offsets.tolist(), contexts.offsets.tolist()
    out = []
    for b in range(len(begins) - 1):
        tokens, context = slice(begins[b], begins[b + 1]), slice(ends[b], ends[b + 1])
        scores = torch.einsum("thn,shn->hts", plain[tokens], key[context].float())
        scores = (scores + torch.einsum("thr,sr->hts", turned[tokens], rotary[context].float())) * scale
        seen = torch.ones_like(scores[0], dtype=torch.bool).tril(scores.shape[2] - scores.shape[1])
        weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
        out.append(torch.einsum("hts,shv->thv", weights, value[context].float()))
    return torch.cat(out).to(query.dtype)
