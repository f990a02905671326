"""Rows that lie more than 2**31 values apart are found: memory is reserved, and only the rows' own pages are used."""

from __future__ import annotations

import pytest
import torch

from kernels.engram_conv import engram_conv
from kernels.engram_fuse import engram_gate
from kernels.mla_decode import mla_decode
from kernels.rms_norm import rms_norm
from kernels.rope import rope
from kernels.row_unpack import row_unpack
from kernels.spans import Spans

FAR = 2**30  # values from row to row: the stride itself fits 32 bits, three of them do not


@pytest.fixture(autouse=True)
def _kernels(monkeypatch):
    """Kernels, and memory that is not filled when it is reserved."""
    monkeypatch.setenv("ENGRAM_KERNELS", "triton")
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)


@pytest.fixture
def far_rows(randn, device):
    """Four rows, FAR values apart, and the same rows side by side."""

    def place(*shape):
        rows = randn(4, *shape, dtype=torch.bfloat16)
        room = torch.empty(3 * FAR + rows[0].numel(), dtype=torch.bfloat16, device=device)
        far = room.as_strided(rows.shape, (FAR, *rows.stride()[1:]))
        return far.copy_(rows), rows

    return place


def test_rows_far_apart_are_normalised(far_rows, randn):
    far, near = far_rows(16)
    weight = randn(16)
    assert torch.equal(rms_norm(far, weight, 1e-6), rms_norm(near, weight, 1e-6))


def test_rows_far_apart_are_rotated(far_rows, randn):
    far, near = far_rows(2, 16)
    cos, sin = randn(4, 8), randn(4, 8)
    assert torch.equal(rope(far, cos, sin), rope(near, cos, sin))


def test_keys_and_values_far_apart_are_gated(far_rows, randn):
    far, near = far_rows(3, 16)
    h, weight = randn(4, 2, 16), randn(2, 16)
    got, wanted = (engram_gate(h, x[:, :2], x[:, 2], weight, weight, "sqrt", 1e-6) for x in (far, near))
    assert torch.equal(got, wanted)


@pytest.mark.parametrize(("row_format", "row_bytes"), [("bf16", 64), ("fp8_e4m3_ue8m0", 33)])
def test_rows_far_down_a_table_are_unpacked(device, row_format, row_bytes):
    count = 2**31 // row_bytes * (3 if row_format == "bf16" else 1) + 2
    table = torch.empty(count, row_bytes, dtype=torch.uint8, device=device)
    rows = torch.randint(1, 100, (2, row_bytes), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    table[-2:] = rows.to(device)
    inverse = torch.tensor([1, 0, 1], device=device)
    got = row_unpack(table, inverse + count - 2, row_format, 32)
    assert torch.equal(got, row_unpack(table[-2:], inverse, row_format, 32))


def test_pages_far_down_a_cache_are_attended(randn, device):
    page, width = 64, 32
    count = 2**31 // (page * width) + 2
    latents = torch.empty(count, page, width, dtype=torch.bfloat16, device=device)
    latents[-2:] = randn(2, page, width, dtype=torch.bfloat16)
    query, spans = randn(1, 2, width, dtype=torch.bfloat16), Spans.of([1], device)
    pages, length = torch.tensor([[1, 0]], device=device).int(), torch.tensor([100], device=device)
    got = mla_decode(query, spans, latents, pages + count - 2, length, 16, 0.2)
    assert torch.equal(got, mla_decode(query, spans, latents[-2:], pages, length, 16, 0.2))


def test_rows_far_down_a_cache_are_convolved(randn, device):
    width = 1024
    count = 2**31 // width + 3
    seen = torch.empty(count, width, dtype=torch.bfloat16, device=device)
    seen[-3:] = randn(3, width, dtype=torch.bfloat16)
    h, y, weight = randn(2, 1, width), randn(2, 1, width), randn(width, 2)
    sources = torch.tensor([[0, 1], [1, 2]], device=device)
    got = engram_conv(h, y, seen, sources + count - 3, weight)
    assert torch.equal(got, engram_conv(h, y, seen[-3:], sources, weight))
