"""The short convolution against a loop over positions in float64, whole sequences and pages of a cache."""

from __future__ import annotations

import pytest
import torch

from kernels.engram_conv import engram_conv

pytestmark = pytest.mark.usefixtures("implementation", "few_strips")


def sources_of(lengths, taps, dilation):
    """Sources of sequences that lie end to end and begin here."""
    positions = torch.cat([torch.arange(length) for length in lengths])
    back = dilation * torch.arange(taps - 1, -1, -1)
    rows = torch.arange(len(positions))[:, None] - back
    return torch.where(positions[:, None] >= back, rows, -1)


def formula(h, y, seen, sources, weight, kept=None):
    h, y, seen, weight = (x.double() for x in (h, y, seen, weight))
    padded = torch.cat((seen, seen.new_zeros(1, seen.shape[1])))  # source -1 is the last row
    z = torch.einsum("tkc,ck->tc", padded[sources], weight)
    added = y + (z * z.sigmoid()).view_as(y)
    return h + (added if kept is None else added * kept[:, None, None])


@pytest.fixture
def inputs(randn, device):
    def draw(lengths, streams, dim, taps, dilation, dtype=torch.float32):
        tokens = sum(lengths)
        h, y = randn(tokens, streams, dim, dtype=dtype), randn(tokens, streams, dim, dtype=dtype)
        seen, weight = randn(tokens, streams * dim, dtype=dtype), randn(streams * dim, taps, dtype=dtype)
        return h, y, seen, sources_of(lengths, taps, dilation).to(device), weight

    return draw


SHAPES = [
    ((1,), 1, 1, 1, 1),
    ((5, 1, 17), 1, 17, 4, 3),
    ((123,), 2, 5, 2, 4),
    ((1025,), 1, 5, 3, 2),
    ((3, 0, 4), 1, 1025, 4, 1),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_convolution_is_its_formula(inputs, assert_near, shape, dtype):
    tensors = inputs(*shape, dtype)
    out = engram_conv(*tensors)
    assert (out.dtype, out.shape) == (dtype, tensors[0].shape)
    assert_near(out, formula(*tensors), scale=3)


def test_no_positions_give_an_empty_result(inputs):
    assert engram_conv(*inputs((0,), 1, 8, 4, 3)).shape == (0, 1, 8)


def test_masked_positions_keep_their_hidden_state(inputs, assert_near, device):
    tensors = inputs((40, 83), 2, 17, 4, 3)
    kept = (torch.arange(246, device=device) % 3 > 0)[::2]  # every other value of a tensor is a mask too
    out = engram_conv(*tensors, kept)
    assert_near(out, formula(*tensors, kept), scale=3)
    assert torch.equal(out[~kept], tensors[0][~kept])


def test_a_paged_cache_is_read_as_the_sequence_itself(inputs, randn, device):
    """Two chunks, the second after the first has been cached, with pages in any order and NaN in unwritten places."""
    h, y, seen, sources, weight = inputs((150,), 1, 24, 4, 3)
    whole = engram_conv(h, y, seen, sources, weight)
    places = (torch.tensor([3, 0, 2])[torch.arange(150) // 64] * 64 + torch.arange(150) % 64).to(device)
    cache = torch.full((5, 64, 24), float("nan"), device=device).view(-1, 24)
    moved = torch.where(sources < 0, -1, places[sources])
    for chunk in (slice(0, 70), slice(70, 71), slice(71, 150)):
        cache[places[chunk]] = seen[chunk]
        assert torch.equal(engram_conv(h[chunk], y[chunk], cache, moved[chunk], weight), whole[chunk])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[1], ((200, 100), 2, 5, 4, 3)], ids=str)
def test_gradients_are_those_of_the_formula(inputs, gradients, assert_near, device, shape, masked):
    h, y, seen, sources, weight = inputs(*shape)
    kept = torch.arange(len(h), device=device) % 3 > 0 if masked else None
    wanted = gradients(
        lambda h, y, seen, weight: formula(h, y, seen, sources, weight, kept),
        *(tensor.double() for tensor in (h, y, seen, weight)),
    )
    got = gradients(lambda h, y, seen, weight: engram_conv(h, y, seen, sources, weight, kept), h, y, seen, weight)
    for one, other in zip(got, wanted, strict=True):
        assert_near(one, other, scale=4 * len(h) ** 0.5)


def test_gradients_in_half_precision_are_those_of_the_formula(inputs, gradients, assert_near):
    h, y, seen, sources, weight = inputs((33, 7), 2, 17, 4, 3, torch.bfloat16)
    in_double = (tensor.double() for tensor in (h, y, seen, weight))
    wanted = gradients(lambda h, y, seen, weight: formula(h, y, seen, sources, weight), *in_double)
    got = gradients(lambda h, y, seen, weight: engram_conv(h, y, seen, sources, weight), h, y, seen, weight)
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == torch.bfloat16
        assert_near(one, other, scale=other.abs().max().item())


def test_rows_that_no_position_reads_have_no_gradient(inputs, gradients, device):
    h, y, _, sources, weight = inputs((5,), 1, 8, 2, 1)
    seen = torch.ones(9, 8, device=device)
    [got] = gradients(lambda seen: engram_conv(h, y, seen, sources, weight), seen)
    assert torch.equal(got[5:], torch.zeros(4, 8, device=device))
