"""Run a prefill and a decode step of full size before the first request, to compile and tune kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from reasoning.architectures.base import Cache, RowSource
from reasoning.model.batch import PAGE_TOKENS, Batch, pages_for

Forward = Callable[[Batch, RowSource | None, Cache], Tensor]


@torch.inference_mode()
def warm_up(forward: Forward, cache: Cache, row_width: int, prompt_tokens: int, sequences: int, context: int) -> None:
    """Run the largest possible steps on pages that no sequence holds yet.

    A kernel's configuration is measured on the first batch that it meets and kept from then on; that batch should not
    be a prompt of five tokens.

    Args:
        forward: the model, or what runs it.
        cache: is overwritten, except for its last page.
        row_width: number of values in a token's memory rows, C * D.
        prompt_tokens: number of tokens in the largest prefill step.
        sequences: number of sequences in the largest decode step.
        context: largest number of positions of a sequence.
    """
    for batch in _batches(cache, prompt_tokens, sequences, context):
        zeros = torch.zeros(len(batch.token_ids), row_width, device=cache.device, dtype=cache.dtype)
        forward(batch, partial(_no_rows, zeros), cache)


def _no_rows(zeros: Tensor, layer: int) -> Tensor:
    return zeros


def _batches(cache: Cache, prompt_tokens: int, sequences: int, context: int) -> list[Batch]:
    pages, device = cache.pages - 1, cache.device
    length = min(prompt_tokens, context, pages * PAGE_TOKENS)
    count = min(max(1, prompt_tokens // length), pages // pages_for(length))
    sequences = min(sequences, pages)
    start = min(context, pages // sequences * PAGE_TOKENS) - 1
    return [
        _batch([length] * count, [0] * count, pages_for(length), device),
        _batch([1] * sequences, [start] * sequences, pages_for(start + 1), device),
    ]


def _batch(lengths: list[int], starts: list[int], pages_each: int, device: torch.device) -> Batch:
    pages = (tuple(range(i * pages_each, (i + 1) * pages_each)) for i in range(len(lengths)))
    tokens = torch.zeros(sum(lengths), dtype=torch.int64, device=device)
    return Batch(tokens, tuple(lengths), tuple(starts), tuple(pages))
