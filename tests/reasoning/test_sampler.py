"""Which tokens a sampler can draw, and how often, with fixed seeds."""

import pytest
import torch

from reasoning.request import SamplingParams
from reasoning.sampler import Sampler

PROBABILITIES = torch.tensor([0.05, 0.4, 0.15, 0.1, 0.3])
LOGITS = PROBABILITIES.log() + 7.0  # a constant added to all changes nothing


def draw(count, **params):
    sampler = Sampler(SamplingParams(**{"temperature": 1.0, "seed": 5, **params}), [])
    return [sampler.choose(LOGITS).token for _ in range(count)]


def test_temperature_zero_takes_the_likeliest():
    assert draw(5, temperature=0, top_k=3, top_p=0.1) == [1] * 5


@pytest.mark.parametrize(
    ("params", "support"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 1}, {1}),
        ({"top_k": 3}, {1, 4, 2}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.01}, {1}),
        ({"top_p": 0.39}, {1}),
        ({"top_p": 0.41}, {1, 4}),
        ({"top_p": 0.69}, {1, 4}),
        ({"top_p": 0.71}, {1, 4, 2}),
        ({"top_p": 0.94}, {1, 4, 2, 3}),
        ({"top_p": 0.96}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.56, "top_k": 2}, {1}),  # of the two left, the first has 4/7
        ({"top_p": 0.58, "top_k": 2}, {1, 4}),
    ],
    ids=str,
)
def test_top_k_and_top_p_leave_exactly_their_tokens(params, support):
    assert set(draw(400, **params)) == support


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, PROBABILITIES),
        ({"temperature": 0.5}, PROBABILITIES**2),
        ({"temperature": 3.0}, PROBABILITIES ** (1 / 3)),
        ({"top_k": 3}, PROBABILITIES * torch.tensor([0, 1, 1, 0, 1])),
        ({"top_p": 0.6}, PROBABILITIES * torch.tensor([0, 1, 0, 0, 1])),
    ],
    ids=str,
)
def test_tokens_come_as_often_as_they_should(params, expected):
    count = 2000
    seen = torch.bincount(torch.tensor(draw(count, **params)), minlength=5)
    expected = expected / expected.sum() * count
    chi_square = ((seen - expected)[expected > 0].square() / expected[expected > 0]).sum()
    assert chi_square < 18.5  # exceeded once in a thousand seeds with four degrees of freedom


def test_a_seed_repeats_and_another_differs():
    assert draw(30) == draw(30)
    assert draw(30) != draw(30, seed=6)
    assert draw(30, seed=None) != draw(30, seed=None)


def test_neighbours_do_not_disturb_a_seed():
    alone = draw(20)
    first, second = (Sampler(SamplingParams(temperature=1.0, seed=seed), []) for seed in (5, 9))
    together = []
    for _ in range(20):
        second.choose(LOGITS.flip(0))
        torch.rand(3)  # whoever uses the global generator does not matter either
        together.append(first.choose(LOGITS).token)
    assert together == alone


@pytest.mark.parametrize("params", [{"temperature": 5e-324}, {"temperature": 1e-40}, {"top_p": 5e-324}], ids=str)
def test_the_smallest_numbers_still_choose_the_likeliest(params):
    assert draw(3, **params) == [1] * 3


def test_masked_tokens_are_never_drawn():
    sampler = Sampler(SamplingParams(temperature=100, seed=0), [])
    masked = LOGITS.masked_fill(torch.tensor([False, True, False, True, False]), float("-inf"))
    assert {sampler.choose(masked).token for _ in range(200)} == {0, 2, 4}
