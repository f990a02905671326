"""Attention over paged latents against the formula in float64: any lengths, pages in any order, several tokens each."""

from __future__ import annotations

import pytest
import torch

from kernels.mla_decode import mla_decode
from kernels.spans import Spans

DTYPES = [torch.float32, torch.bfloat16]
PAGE = 64

pytestmark = pytest.mark.usefixtures("implementation")


@pytest.fixture
def cache(randn):
    """Function that makes latents and a page table: pages in mixed order, NaN where no sequence has been."""

    def make(lengths, width, dtype=torch.float32, page=PAGE):
        most = -(-max(lengths) // page)
        latents = torch.full((len(lengths) * most + 3, page, width), float("nan"), dtype=dtype)
        free = torch.randperm(len(latents), generator=torch.Generator().manual_seed(0)).tolist()
        table = torch.full((len(lengths), most), -1, dtype=torch.int32)
        for b, length in enumerate(lengths):
            for i in range(-(-length // page)):
                table[b, i] = free.pop()
                size = min(page, length - i * page)
                latents[table[b, i], :size] = randn(size, width, dtype=dtype).cpu()
        device = randn(1).device
        return latents.to(device), table.to(device)

    return make


def formula(query, spans, latents, table, lengths, rank, scale):
    out = []
    for b, length in enumerate(lengths.tolist()):
        context = torch.cat([latents[page] for page in table[b].tolist() if page >= 0])[:length].double()
        begin, end = spans.offsets[b : b + 2].tolist()
        for t in range(begin, end):
            seen = context[: length - (end - 1 - t)]
            out.append((query[t].double() @ seen.T * scale).softmax(-1) @ seen[:, :rank])
    return torch.stack(out)


def decoded(randn, cache, assert_near, heads, rank, rope, lengths, counts, dtype=torch.float32, page=PAGE):
    latents, table = cache(lengths, rank + rope, dtype, page)
    spans = Spans.of(counts, latents.device)
    query = randn(sum(counts), heads, rank + rope, dtype=dtype)
    arguments = (query, spans, latents, table, torch.tensor(lengths).to(latents.device), rank, (rank + rope) ** -0.5)
    out = mla_decode(*arguments)
    assert (out.dtype, out.shape) == (dtype, (sum(counts), heads, rank))
    assert_near(out, formula(*arguments), scale=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "rank", "rope"), [(1, 5, 3), (4, 96, 16), (17, 16, 8)])
def test_one_token_attends_its_own_context(randn, cache, assert_near, heads, rank, rope, dtype):
    lengths = [1, 5, 64, 65, 123, 17]
    decoded(randn, cache, assert_near, heads, rank, rope, lengths, [1] * len(lengths), dtype)


def test_a_long_context_beside_a_short_one(randn, cache, assert_near):
    decoded(randn, cache, assert_near, 3, 24, 8, [1025, 2], [1, 1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_several_tokens_of_a_sequence_attend_causally(randn, cache, assert_near, dtype):
    decoded(randn, cache, assert_near, 5, 32, 16, [8, 66, 130, 3], [8, 5, 1, 3], dtype)


def test_more_pairs_than_a_tile_holds(randn, cache, assert_near):
    decoded(randn, cache, assert_near, 17, 16, 16, [70, 9], [8, 2])


def test_pages_of_more_tokens_give_the_same_attention(randn, cache, assert_near):
    decoded(randn, cache, assert_near, 4, 16, 16, [1, 130, 300], [1, 1, 2], page=128)


def test_contexts_in_one_stretch_are_written_at_once(randn, cache, assert_near):
    decoded(randn, cache, assert_near, 4, 16, 16, [20] * 40, [1] * 40)


def test_a_sequence_gets_the_same_output_beside_any_neighbour(randn, cache):
    latents, table = cache([100, 128], 24)
    spans, query, lengths = Spans.of([1, 1], latents.device), randn(2, 3, 24), torch.tensor([100, 128])
    out = mla_decode(query, spans, latents, table, lengths.to(latents.device), 16, 0.2)
    lengths[1] = 5
    other = mla_decode(query, spans, latents, table, lengths.to(latents.device), 16, 0.2)
    assert torch.equal(out[0], other[0])
