"""A gather of packed rows as they are, which reads page-locked memory of the host as well as the device's own."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


@triton.jit
def gather_kernel(table, ids, out, rows, WORDS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """out[i] = table[ids[i]], rows of WORDS words."""
    place = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = tl.load(ids + place, mask=place < rows, other=0)
    word = tl.arange(0, BLOCK)[None, :]
    inside = (place < rows)[:, None] & (word < WORDS)
    values = tl.load(table + row[:, None] * WORDS + word, mask=inside, other=0)
    tl.store(out + place[:, None] * WORDS + word, values, mask=inside)


def gather_rows(table: Tensor, ids: Tensor, rows_a_program: int = 4) -> Tensor:
    """Return uint8 [n, row_bytes] for a table uint8 [rows, row_bytes] and ids [n] int64 on a device."""
    size = next(size for size in _WORDS if table.shape[1] % size == 0)
    words = table.view(_WORDS[size])
    out = torch.empty(len(ids), words.shape[1], dtype=words.dtype, device=ids.device)
    gather_kernel[(triton.cdiv(len(ids), rows_a_program),)](
        words, ids, out, len(ids), WORDS=words.shape[1], ROWS=rows_a_program,
        BLOCK=triton.next_power_of_2(words.shape[1]),
    )  # fmt: skip
    return out.view(torch.uint8)
