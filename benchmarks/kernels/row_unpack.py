"""Rows of `row_unpack` and `row_expand`: a third of the positions share their row with another position."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.kernels.case import Case, nbytes
from kernels.row_unpack import row_expand, row_unpack

COLUMNS = {"shipped model": (8, 32), "paper demo": (16, 64), "V4.1": (24, 256)}
"""Columns of a layer, and values of a row."""


def _indices(device: torch.device, tokens: int, columns: int) -> tuple[int, Tensor]:
    positions = tokens * columns
    unique = max(1, 2 * positions // 3)
    return unique, torch.randint(unique, (tokens, columns), device=device)


def _unpack(model: str, row_format: str, tokens: int) -> Case:
    columns, dim = COLUMNS[model]

    def make(device: torch.device, count: int) -> tuple[Tensor, ...]:
        unique, inverse = _indices(device, count, columns)
        if row_format == "fp8_e4m3_ue8m0":
            values = torch.randint(0, 120, (unique, dim), dtype=torch.uint8, device=device)
            scales = torch.randint(120, 134, (unique, dim // 32), dtype=torch.uint8, device=device)
            return torch.cat((values, scales), 1), inverse
        scalar = torch.bfloat16 if row_format == "bf16" else torch.float32
        return torch.randn(unique, dim, device=device, dtype=scalar).view(torch.uint8), inverse

    function = partial(row_unpack, row_format=row_format, dim=dim, dtype=torch.bfloat16)
    return Case("row_unpack", f"{model} {columns} x {dim} {row_format}", function, make, tokens)


def _expand(model: str, tokens: int) -> Case:
    columns, dim = COLUMNS[model]

    def make(device: torch.device, count: int) -> tuple[Tensor, ...]:
        unique, inverse = _indices(device, count, columns)
        return torch.randn(unique, dim, device=device), inverse

    def moved(arguments: tuple[Tensor, ...], results: tuple[Tensor, ...]) -> int:
        """All but the rows themselves, whose gradient does not depend on them."""
        return nbytes(*arguments[1:], *results)

    return Case("row_expand", f"{model} {columns} x {dim} fp32", row_expand, make, tokens, gradient=(0,), moved=moved)


CASES = (
    *(_unpack(model, "fp8_e4m3_ue8m0", 8192) for model in COLUMNS),
    _unpack("V4.1", "fp8_e4m3_ue8m0", 64),
    *(_unpack("paper demo", row_format, 8192) for row_format in ("bf16", "fp32")),
    *(_expand(model, 8192) for model in ("paper demo", "V4.1")),
)
