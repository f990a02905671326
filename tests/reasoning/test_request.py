import pytest

from reasoning.request import RequestError, SamplingParams


def test_defaults_are_greedy():
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
    assert value == 0 or repr(value) in refusal.value.message
