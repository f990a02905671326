"""Rows of `ngram_hash`: all Engram layers of a model at once, sequences of 1024 tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.case import Case, Results
from kernels.ngram_hash import HashTables, ngram_hash

VOCABULARY, COMPRESSED, LENGTH = 129_280, 99_092, 1024
GEOMETRIES = {"shipped model": (2, 3, 4, 40_009), "paper demo": (2, 3, 8, 646_403), "V4.1": (2, 4, 8, 16_000_057)}
"""Layers, longest n-gram, heads, and a prime about which the real ones lie."""


def _case(model: str, tokens: int, masked: bool = False) -> Case:
    layers, max_ngram, heads, prime = GEOMETRIES[model]

    def make(device: torch.device, count: int) -> tuple[Any, ...]:
        ids = torch.randint(VOCABULARY, (count,), device=device)
        positions = torch.arange(count, device=device)
        multipliers = [[2**45 + 2 * i + 1 for i in range(max_ngram)]] * layers
        tables = HashTables.build(
            torch.arange(VOCABULARY, device=device) % COMPRESSED,
            multipliers,
            [[prime] * ((max_ngram - 1) * heads)] * layers,
            pad_id=2,
        )
        blocked = torch.arange(count, device=device) % 8 == 0 if masked else None
        return ids, positions // LENGTH, positions, tables, blocked

    shape = f"{model} {layers} x {(max_ngram - 1) * heads}{', an eighth blocked' if masked else ''}"
    return Case("ngram_hash", shape, ngram_hash, make, tokens, moved=_moved)


def _moved(arguments: tuple[Any, ...], results: Results) -> int:
    """Ids, sequences and positions read, rows written; the constants stay in caches."""
    tensors: tuple[Tensor, ...] = (*arguments[:3], *results)
    return sum(x.numel() * x.element_size() for x in tensors)


CASES = (
    *(_case(model, 65_536) for model in GEOMETRIES),
    _case("V4.1", 64),
    _case("V4.1", 65_536, masked=True),
)
