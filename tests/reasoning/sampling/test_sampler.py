"""Which tokens a sampler can draw and how likely, against transformers' own processors of logits."""

from __future__ import annotations

import bisect
import math
import random
from types import SimpleNamespace

import pytest
import torch
import transformers.generation.logits_process as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.request import RequestError, SamplingParams
from reasoning.sampling.sampler import Chosen, Sampler, SamplerError, largest

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


def expected_probabilities(logits, params, prompt=(), output=()):
    """Probabilities after what transformers does to the logits; after the penalties in fp64."""
    scores, seen = logits[None], torch.tensor([[*prompt, *output]], dtype=torch.int64)
    if seen.numel():
        scores = reference.RepetitionPenaltyLogitsProcessor(float(params.repetition_penalty))(seen, scores)
    counts = torch.bincount(torch.tensor(output, dtype=torch.int64), minlength=len(logits))
    scores = (scores - params.frequency_penalty * counts - params.presence_penalty * (counts > 0)).double()
    steps = [reference.TemperatureLogitsWarper(float(params.temperature))]
    if params.top_k:
        steps.append(reference.TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        steps.append(reference.TopPLogitsWarper(params.top_p))
    if params.min_p:
        steps.append(reference.MinPLogitsWarper(params.min_p))
    for step in steps:
        scores = step(seen, scores)
    return scores.softmax(-1)[0]


def drawn_at(u, logits, params, prompt=(), output=()):
    """The token that a sampler draws when its generator says u, after some output."""
    sampler = Sampler(params, prompt)
    for token in output:
        sampler._random = SimpleNamespace(random=lambda: 0.5)
        forced = torch.full_like(logits, -math.inf).index_fill(0, torch.tensor([token]), 100.0)
        assert sampler.choose(forced).token == token
    sampler._random = SimpleNamespace(random=lambda: u)
    return sampler.choose(logits).token


def assert_draws_as_expected(logits, params, prompt=(), output=()):
    """Every token's stretch of the unit interval begins and ends where the expected probabilities say."""
    probabilities = expected_probabilities(logits, params, prompt, output)
    ends = probabilities.cumsum(-1)
    for token, (end, probability) in enumerate(zip(ends.tolist(), probabilities.tolist(), strict=True)):
        if probability > 1e-5:
            for u in (end - probability + 1e-6, end - probability / 2, end - 1e-6):
                assert drawn_at(u, logits, params, prompt, output) == token


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": 99},
        {"top_p": 0.05},
        {"top_p": 0.6},
        {"top_p": 0.999},
        {"min_p": 0.1},
        {"min_p": 1.0},
        {"top_k": 5, "top_p": 0.7},
        {"top_p": 0.8, "min_p": 0.3},
        {"top_k": 6, "top_p": 0.9, "min_p": 0.05, "temperature": 1.7},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.7},
        {"presence_penalty": 1.5},
        {"presence_penalty": -0.5},
        {"frequency_penalty": 0.8},
        {"frequency_penalty": -0.3},
        {"repetition_penalty": 1.2, "presence_penalty": 0.4, "frequency_penalty": 0.2, "top_k": 4, "top_p": 0.9},
    ],
    ids=str,
)
@pytest.mark.parametrize("output", [(), (3,), (3, 0, 3, 3)], ids=str)
def test_each_token_has_the_probability_that_transformers_gives_it(params, output):
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3)) * 2
    assert_draws_as_expected(logits, SamplingParams(**{"temperature": 1.0, **params}), prompt=(5, 3, 5), output=output)


@settings(deadline=None)  # a busy machine is no failure
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 200),
    temperature=st.floats(0.1, 10),
    top_k=st.integers(0, 220),
    top_p=st.floats(0.01, 1),
    min_p=st.just(0.0) | st.floats(0, 1),
    repetition=st.floats(0.5, 2),
)
def test_any_combination_draws_what_transformers_could(seed, size, temperature, top_k, top_p, min_p, repetition):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, generator=generator) * 3
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition
    )
    u = float(torch.rand((), generator=generator, dtype=torch.float64))
    token = drawn_at(u, logits, params, prompt=(0, size - 1), output=(size // 2,))
    probabilities = expected_probabilities(logits, params, (0, size - 1), (size // 2,))
    before = float(probabilities[:token].sum())
    assert before - 1e-5 <= u <= before + float(probabilities[token]) + 1e-5


def test_equal_logits_are_cut_to_the_first_tokens():
    flat = torch.zeros(5000)
    assert {drawn_at(u, flat, SamplingParams(temperature=1.0, top_k=2)) for u in (0.0, 0.3, 0.6, 0.99)} == {0, 1}
    half = SamplingParams(temperature=1.0, top_p=0.5)
    assert [drawn_at(u, flat, half) for u in (0.0, 0.5, 1 - 2**-53)] == [0, 1250, 2499]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 8])
def test_the_largest_are_sorted_and_of_equal_ones_the_first(count):
    scores = torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0, 2.0, -math.inf, 0.0])
    values, ids = largest(scores, count)
    assert ids.tolist() == [1, 3, 2, 4, 5, 0, 7, 6][:count]
    assert values.tolist() == scores[ids].tolist()


def test_penalties_also_change_what_is_likeliest():
    logits = torch.tensor([2.0, 1.9, -1.8, -2.1])
    greedy = Sampler(SamplingParams(frequency_penalty=0.15), [])
    assert [greedy.choose(logits).token for _ in range(6)] == [0, 1, 0, 1, 0, 1]
    assert Sampler(SamplingParams(repetition_penalty=1.2), [0]).choose(logits).token == 1
    assert Sampler(SamplingParams(repetition_penalty=1.2), [0]).choose(logits - 3.0).token == 1  # also below zero


def test_penalties_of_a_long_output_count_every_token():
    sampler = Sampler(SamplingParams(frequency_penalty=2.0), [])
    order = [sampler.choose(torch.linspace(1, 0, 300)).token for _ in range(900)]
    assert order == [*range(300)] * 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_log_probabilities_are_those_of_the_model_itself(temperature):
    params = SamplingParams(temperature=temperature, top_k=1, presence_penalty=2.0, logprobs=3, seed=0)
    sampler = Sampler(params, [])
    expected = PROBABILITIES.log()
    for token in (1, 4, 2):  # each is penalised after its first time
        chosen = sampler.choose(LOGITS)
        assert chosen.token == token
        assert chosen.logprob == pytest.approx(float(expected[token]), abs=1e-6)
        assert [i for i, _ in chosen.top] == [1, 4, 2]
        assert [value for _, value in chosen.top] == pytest.approx(expected[[1, 4, 2]].tolist(), abs=1e-6)


def test_log_probabilities_leave_out_what_is_impossible():
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0])
    chosen = Sampler(SamplingParams(logprobs=20), []).choose(logits)
    assert (chosen.token, chosen.logprob) == (1, pytest.approx(-math.log(2)))
    assert [i for i, _ in chosen.top] == [1, 3]
    assert Sampler(SamplingParams(logprobs=0), []).choose(logits).top == ()
    assert Sampler(SamplingParams(), []).choose(logits) == Chosen(1, None, ())


def test_only_plain_choices_take_what_is_known_of_the_logits():
    assert Sampler(SamplingParams(), []).choose(LOGITS, likeliest=2).token == 2
    for params in ({"temperature": 1.0}, {"logprobs": 0}, {"presence_penalty": 1.0}, {"repetition_penalty": 1.1}):
        sampler = Sampler(SamplingParams(top_k=1, **params), [])
        assert not sampler.plain
        assert sampler.choose(LOGITS, likeliest=2).token == 1


@pytest.mark.parametrize(
    "params",
    [{}, {"logprobs": 1}, {"presence_penalty": 1.0}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 2}],
    ids=str,
)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_without_a_likeliest_token_are_the_models_fault(params, bad):
    logits = torch.full((5,), bad) if bad == -math.inf else LOGITS.index_fill(0, torch.tensor([3]), bad)
    with pytest.raises(SamplerError, match=f"highest logit is {bad}") as error:
        Sampler(SamplingParams(**params), [0]).choose(logits)
    assert isinstance(error.value, RequestError)
    assert error.value.field == "model"
    if not params:
        with pytest.raises(SamplerError):
            Sampler(SamplingParams(), []).choose(LOGITS, likeliest=3, highest=bad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_any_float_type_give_the_same_token(dtype):
    params = {"temperature": 1.0, "top_k": 4, "repetition_penalty": 1.1, "logprobs": 2, "seed": 3}
    chosen, same = (Sampler(SamplingParams(**params), [2]) for _ in range(2))
    logits = LOGITS.to(dtype)
    assert [chosen.choose(logits) for _ in range(9)] == [same.choose(logits.float()) for _ in range(9)]


def test_samples_of_a_request_draw_with_the_seeds_that_follow():
    samples = [Sampler(SamplingParams(temperature=1.0, seed=5, n=3), [], index) for index in range(3)]
    drawn = [[sampler.choose(LOGITS).token for _ in range(30)] for sampler in samples]
    assert drawn == [draw(30, seed=seed) for seed in (5, 6, 7)]
    assert len({tuple(tokens) for tokens in drawn}) == 3


def test_a_draw_is_one_number_of_pythons_generator_laid_on_the_tokens_by_id():
    generator, ends = random.Random(2024), PROBABILITIES.double().cumsum(-1).tolist()
    assert draw(50, seed=2024) == [bisect.bisect(ends, generator.random()) for _ in range(50)]


def test_a_seed_repeats_and_another_differs():
    assert draw(30) == draw(30)
    assert draw(30) != draw(30, seed=6)
    assert draw(30, seed=None) != draw(30, seed=None)


def test_other_samplers_do_not_disturb_the_draws_of_a_seed():
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
