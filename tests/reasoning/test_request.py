from __future__ import annotations

import pytest

from reasoning.request import Choice, Completion, RequestError, SamplingParams


def test_default_parameters_take_the_most_likely_token():
    params = SamplingParams()
    assert (params.temperature, params.top_p, params.top_k, params.seed, params.ignore_eos) == (
        0.0,
        1.0,
        0,
        None,
        False,
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 1),
        ("max_new_tokens", 2**63 - 1),
        ("temperature", 0),
        ("temperature", 1e-300),
        ("temperature", 100),
        ("top_p", 1),
        ("top_p", 1e-300),
        ("top_k", 2**63 - 1),
        ("seed", 0),
        ("seed", 2**63 - 1),
        ("min_p", 0),
        ("min_p", 1),
        ("repetition_penalty", 0.01),
        ("repetition_penalty", 100),
        ("presence_penalty", -2),
        ("presence_penalty", 2),
        ("frequency_penalty", -2),
        ("frequency_penalty", 2.0),
        ("stop", ()),
        ("stop", ("x" * 256,)),
        ("stop", ("a",) * 16),
        ("stop_token_ids", (0, 2**63 - 1)),
        ("stop_token_ids", (1,) * 64),
        ("logprobs", None),
        ("logprobs", 0),
        ("logprobs", 20),
        ("n", 1),
        ("n", 128),
        ("stop", ("\x00", "😀")),
        ("include_stop_str_in_output", True),
        ("skip_special_tokens", False),
    ],
    ids=lambda value: str(value)[:16],
)
def test_the_ends_of_each_range_are_accepted(field, value):
    assert getattr(SamplingParams(**{field: value}), field) == value


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_new_tokens", 0, "out of range; use at least 1"),
        ("max_new_tokens", 1.0, "not a whole number"),
        ("max_new_tokens", True, "not a whole number"),
        ("max_new_tokens", "16", "not a whole number"),
        ("temperature", -0.1, "out of range; use 0 to 100"),
        ("temperature", 101, "out of range; use 0 to 100"),
        ("temperature", float("nan"), "not a number"),
        ("temperature", float("inf"), "not a number"),
        ("temperature", "hot", "not a number"),
        ("temperature", None, "not a number"),
        ("temperature", False, "not a number"),
        ("top_p", 0.0, "use a value above 0"),
        ("top_p", 1.01, "out of range; use 0 to 1"),
        ("top_k", -1, "out of range; use at least 0"),
        ("top_k", 2**63, "out of range; use 0 to 9223372036854775807"),
        ("top_k", 0.5, "not a whole number"),
        ("seed", -1, "out of range; use at least 0"),
        ("seed", 2**63, "out of range; use 0 to 9223372036854775807"),
        ("seed", "x", "not a whole number"),
        ("min_p", -0.1, "out of range; use 0 to 1"),
        ("min_p", 1.1, "out of range; use 0 to 1"),
        ("min_p", float("nan"), "not a number"),
        ("repetition_penalty", 0.0, "out of range; use 0.01 to 100"),
        ("repetition_penalty", -1, "out of range; use 0.01 to 100"),
        ("repetition_penalty", 101, "out of range; use 0.01 to 100"),
        ("repetition_penalty", float("inf"), "not a number"),
        ("presence_penalty", -2.5, "out of range; use -2 to 2"),
        ("presence_penalty", "1", "not a number"),
        ("frequency_penalty", 3, "out of range; use -2 to 2"),
        ("frequency_penalty", None, "not a number"),
        ("stop", None, "not a list"),
        ("stop", {"a"}, "not a list"),
        ("stop", ("a", 5), "5 is not a string"),
        ("stop", "", "leave it out"),
        ("stop", ("a", ""), "leave it out"),
        ("stop", "x" * 257, "has 257 characters; use 256 at most"),
        ("stop", ["a"] * 17, "has 17 entries; give 16 at most"),
        ("stop_token_ids", 3, "not a list"),
        ("stop_token_ids", "3", "not a list"),
        ("stop_token_ids", (1, -1), "-1 is out of range; use at least 0"),
        ("stop_token_ids", (1.0,), "1.0 is not a whole number"),
        ("stop_token_ids", (True,), "True is not a whole number"),
        ("stop_token_ids", [1] * 65, "has 65 entries; give 64 at most"),
        ("logprobs", -1, "out of range; use 0 to 20"),
        ("logprobs", 21, "out of range; use 0 to 20"),
        ("logprobs", True, "not a whole number"),
        ("n", 0, "out of range; use 1 to 128"),
        ("n", 129, "out of range; use 1 to 128"),
        ("n", 2.0, "not a whole number"),
        ("stop", ("a", "x\ud800"), "has an unpaired surrogate, which no output has; remove it"),
        ("stop", ["x" * 1_000_000], "has 1000000 characters; use 256 at most"),
        ("stop", ["x"] * 1_000_000, "has 1000000 entries; give 16 at most"),
        ("include_stop_str_in_output", 1, "not true or false"),
        ("skip_special_tokens", None, "not true or false"),
        ("ignore_eos", 1, "not true or false"),
        ("ignore_eos", "no", "not true or false"),
    ],
)
def test_what_is_refused_names_field_value_and_range(field, value, message):
    with pytest.raises(RequestError) as refusal:
        SamplingParams(**{field: value})
    assert refusal.value.field == field
    assert message in refusal.value.message
    assert str(refusal.value) == f"{field}: {refusal.value.message}"
    listed = isinstance(value, (str, list, tuple))
    assert listed or value == 0 or repr(value) in refusal.value.message


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"stop": "end"}, {"stop": ("end",)}),
        ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"stop_token_ids": [3, 5]}, {"stop_token_ids": (3, 5)}),
    ],
    ids=str,
)
def test_lists_become_tuples_so_that_parameters_compare_and_hash(given, kept):
    assert SamplingParams(**given) == SamplingParams(**kept)
    assert hash(SamplingParams(**given)) == hash(SamplingParams(**kept))
    (name,) = kept
    assert getattr(SamplingParams(**given), name) == kept[name]


def test_a_completion_shows_its_first_sample():
    choices = (Choice(0, "a", (1,), "stop"), Choice(1, "b", (2, 3), "length"))
    completion = Completion("x", choices, 4)
    assert (completion.text, completion.token_ids, completion.finish_reason) == ("a", (1,), "stop")
    assert completion.cached_tokens == 0
