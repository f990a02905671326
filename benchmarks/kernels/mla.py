"""Rows of `mla_decode` and `mla_prefill`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.case import Case, Results
from kernels.mla_decode import mla_decode
from kernels.mla_prefill import mla_prefill
from kernels.spans import Spans

PAGE = 64
CHUNK = 2048  # tokens of a sequence in a prefill


@dataclass(frozen=True)
class Attention:
    """The latent attention of one layer on one GPU."""

    model: str
    heads: int
    rank: int = 512
    nope: int = 128
    rope: int = 64
    value: int = 128

    @property
    def scale(self) -> float:
        """Factor of the scores."""
        return (self.nope + self.rope) ** -0.5


SHIPPED = Attention("shipped model", 4, 96, 48, 16, 64)
LITE = Attention("V2-Lite", 16)  # and V3 with its heads on 8 GPUs
V3 = Attention("V3", 128)


def _bf16(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, device=device, dtype=torch.bfloat16)


def _decode_case(model: Attention, context: int, sequences: int, drafts: int = 0) -> Case:
    """Sequences of half to all of `context`, each with its next token and some drafts."""

    def make(device: torch.device, tokens: int) -> tuple[Any, ...]:
        count = min(max(tokens // (drafts + 1), 1), sequences)
        lengths = torch.tensor([context - b * context // (2 * count) for b in range(count)])
        table = context // PAGE
        latents = _bf16(device, count * table, PAGE, model.rank + model.rope)
        pages = torch.randperm(count * table).view(count, table).int().to(device)
        query = _bf16(device, count * (drafts + 1), model.heads, model.rank + model.rope)
        spans = Spans.of([drafts + 1] * count, device)
        return query, spans, latents, pages, lengths.to(device), model.rank, model.scale / 4

    shape = f"{model.model} {model.heads} heads, contexts to {context}" + (f", {drafts} drafts" if drafts else "")
    return Case("mla_decode", shape, mla_decode, make, sequences * (drafts + 1), moved=_bytes_decoded)


def _bytes_decoded(arguments: tuple[Any, ...], results: Results) -> int:
    """Every latent of every context once, queries and outputs."""
    query, _, latents, _, lengths = arguments[:5]
    return 2 * (int(lengths.sum()) * latents.shape[-1] + query.numel() + results[0].numel())


def _prefill_case(model: Attention, tokens: int, gradient: bool = False) -> Case:
    def make(device: torch.device, count: int) -> tuple[Any, ...]:
        spans = Spans.of([CHUNK] * (count // CHUNK) or [count], device)
        rows = CHUNK * (count // CHUNK) or count
        expanded = _bf16(device, rows, model.heads, model.nope + model.value)
        key, value = expanded.split((model.nope, model.value), dim=-1)
        query, rotary = _bf16(device, rows, model.heads, model.nope + model.rope), _bf16(device, rows, model.rope)
        return query, spans, key, rotary, value, spans, model.scale

    def flops(count: int) -> int:
        """Half of all products, as attention is causal; backward, each again with either factor's gradient."""
        width = model.nope + model.rope + model.value
        return (4 if gradient else 2) * count * CHUNK // 2 * model.heads * width

    gradients = (0, 2, 3, 4) if gradient else ()
    tolerance = 2**-5 if gradient else 2**-6  # the weights' gradients are rounded between two products
    shape = f"{model.model} {model.heads} heads"
    return Case("mla_prefill", shape, mla_prefill, make, tokens, gradients, flops, tolerance=tolerance)


CASES = (
    _decode_case(SHIPPED, 1024, 64),
    _decode_case(LITE, 4096, 64),
    _decode_case(LITE, 32768, 8),
    _decode_case(LITE, 4096, 64, drafts=3),
    _decode_case(V3, 4096, 64),
    *(_prefill_case(model, 4096) for model in (SHIPPED, LITE, V3)),
    *(_prefill_case(model, 4096, gradient=True) for model in (SHIPPED, LITE)),
)
