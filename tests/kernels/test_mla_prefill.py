"""Varlen causal attention against the formula in float64: chunks of any length behind any context, and gradients."""

from __future__ import annotations

import pytest
import torch

from kernels.mla_prefill import mla_prefill
from kernels.spans import Spans

DTYPES = [torch.float32, torch.bfloat16]
SIZES = [(1, 5, 3, 7), (2, 48, 16, 64), (3, 24, 8, 16)]  # heads, nope, rope, value
CHUNKS = {  # tokens of each sequence, and contexts
    "one token": ((1,), (1,)),
    "whole sequences": ((17, 5, 1, 33), (17, 5, 1, 33)),
    "chunks behind a context": ((5, 1, 17), (123, 40, 18)),
    "several tiles": ((150, 3), (201, 3)),
    "a long context": ((5,), (1025,)),
}

pytestmark = pytest.mark.usefixtures("implementation")


@pytest.fixture(params=CHUNKS)
def chunks(request):
    return CHUNKS[request.param]


def inputs(randn, sizes, chunks, dtype):
    (heads, nope, rope, width), (counts, lengths) = sizes, chunks
    tokens, positions, device = sum(counts), sum(lengths), randn(1).device
    expanded = randn(positions, heads, nope + width, dtype=dtype)  # keys and values are views, as the model's are
    key, value = expanded.split((nope, width), dim=-1)
    query, rotary = randn(tokens, heads, nope + rope, dtype=dtype), randn(positions, rope, dtype=dtype)
    return (query, key, rotary, value), (Spans.of(counts, device), Spans.of(lengths, device))


def attended(query, key, rotary, value, queries, contexts):
    return mla_prefill(query, queries, key, rotary, value, contexts, query.shape[-1] ** -0.5)


def formula(query, key, rotary, value, queries, contexts):
    query, value = query.double(), value.double()
    shared = rotary.double()[:, None].expand(-1, key.shape[1], -1)
    key, out = torch.cat((key.double(), shared), dim=-1), []
    for b in range(len(queries.offsets) - 1):
        begin, end = queries.offsets[b : b + 2].tolist()
        for t in range(begin, end):
            seen = slice(contexts.offsets[b], contexts.offsets[b + 1] - (end - 1 - t))
            scores = torch.einsum("hd,shd->hs", query[t], key[seen]) * query.shape[-1] ** -0.5
            out.append(torch.einsum("hs,shv->hv", scores.softmax(-1), value[seen]))
    return torch.stack(out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_tokens_attend_what_came_before_them(randn, assert_near, sizes, chunks, dtype):
    tensors, spans = inputs(randn, sizes, chunks, dtype)
    out = attended(*tensors, *spans)
    assert (out.dtype, out.shape) == (dtype, (*tensors[0].shape[:2], sizes[3]))
    assert_near(out, formula(*tensors, *spans), scale=2)


def test_large_scores_give_finite_results(randn, assert_near):
    (query, key, rotary, value), spans = inputs(randn, (2, 16, 16, 16), ((40,), (40,)), torch.float32)
    tensors = (30 * query, 30 * key, rotary, value)
    assert_near(attended(*tensors, *spans), formula(*tensors, *spans), scale=100)  # scores of hundreds, to 1e-7 of them


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES[:2], ids=str)
def test_gradients_are_those_of_the_formula(randn, assert_near, gradients, sizes, chunks, dtype):
    tensors, spans = inputs(randn, sizes, chunks, dtype)
    got = gradients(lambda *tensors: attended(*tensors, *spans), *tensors)
    wanted = gradients(lambda *tensors: formula(*tensors, *spans), *(tensor.double() for tensor in tensors))
    for one, other, tensor in zip(got, wanted, tensors, strict=True):
        assert (one.dtype, one.shape) == (dtype, tensor.shape)
        assert_near(one, other, scale=8)
