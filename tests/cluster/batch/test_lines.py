from __future__ import annotations

import json

import pytest

from cluster.batch.lines import give_up, line_seed, parse_line
from cluster.batch.options import InputLimits
from cluster.batch.reading import RawLine
from reasoning.engine.config import EngineStats
from reasoning.request import SamplingParams
from reasoning.text.prompt_limits import PromptLimits

DEFAULTS = SamplingParams(max_new_tokens=8, temperature=0.0, seed=3)


LIMITS = InputLimits()


def parse(line, number=1, limits=LIMITS, place=9):
    content = line if isinstance(line, bytes) else json.dumps(line).encode()
    small = content if len(content) <= limits.line_bytes else None
    return parse_line(RawLine(number, place, len(content), small, "digest"), DEFAULTS, limits)


def test_a_prompt_becomes_a_request_with_the_jobs_sampling():
    line = parse({"id": "a", "prompt": "def f("}, number=7)
    assert line.problem is None
    assert (line.id, line.request.id, line.request.prompt, line.request.prompt_token_ids) == ("a", "7", "def f(", None)
    assert line.request.sampling.max_new_tokens == 8


def test_token_ids_stand_in_for_a_prompt_and_nulls_count_as_absent():
    request = parse({"id": None, "prompt": None, "prompt_token_ids": [1, 2], "top_k": None}).request
    assert (request.prompt, request.prompt_token_ids) == (None, (1, 2))


@pytest.mark.parametrize(
    ("given", "seen"), [({}, "line-5"), ({"id": None}, "line-5"), ({"id": 0}, 0), ({"id": ""}, "")]
)
def test_ids_are_kept_as_given_and_made_up_where_missing(given, seen):
    assert parse({"prompt": "x", **given}, number=5).id == seen


def test_a_line_sets_sampling_for_itself():
    own = {
        "max_new_tokens": 2,
        "temperature": 1,
        "top_p": 0.5,
        "top_k": 4,
        "min_p": 0.1,
        "seed": 9,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "stop": ["a", "b"],
        "stop_token_ids": [3],
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "logprobs": 2,
        "n": 3,
        "ignore_eos": True,
    }
    assert vars(parse({"prompt": "x", **own}).request.sampling) == own | {"stop": ("a", "b"), "stop_token_ids": (3,)}


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("max_tokens", "do you mean max_new_tokens?"),
        ("topp", "do you mean top_p or stop?"),
        ("Prompt", "do you mean prompt?"),
        ("label", "a line may have id, prompt, prompt_token_ids, max_new_tokens"),
    ],
)
def test_an_unknown_key_is_refused_and_what_may_be_meant_is_named(key, remedy):
    problem = parse({"id": "a", "prompt": "x", key: 1}).problem
    assert problem.field == "line"
    assert f"unknown key '{key}'; {remedy}" in problem.message


def test_the_seed_of_a_line_follows_from_the_jobs_seed_and_the_line_number_alone():
    seeds = [parse({"prompt": "x"}, number=n).request.sampling.seed for n in (1, 2, 1)]
    assert seeds[0] == seeds[2] == line_seed(3, 1)
    assert seeds[0] != seeds[1] != line_seed(4, 2)


@pytest.mark.parametrize(
    ("line", "field", "line_id"),
    [
        (b"{", "line", None),
        (b"\xff", "line", None),
        (b"[" * 100_000, "line", None),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "line", None),
        ([1], "line", None),
        ("text", "line", None),
        ({}, "prompt", "line-1"),
        ({"id": "a", "prompt": "x", "prompt_token_ids": [1]}, "prompt", "a"),
        ({"id": "a", "prompt": 3}, "prompt", "a"),
        ({"id": "a", "prompt": "\ud800"}, "prompt", "a"),
        ({"id": "a", "prompt_token_ids": "1 2"}, "prompt_token_ids", "a"),
        ({"id": "a", "prompt_token_ids": [1, 2.0]}, "prompt_token_ids", "a"),
        ({"id": "a", "prompt_token_ids": [True]}, "prompt_token_ids", "a"),
        ({"id": ["a"], "prompt": "x"}, "id", None),
        ({"id": True, "prompt": "x"}, "id", None),
        ({"id": "\udfff", "prompt": "x"}, "id", None),
        (b'{"id": NaN, "prompt": "x"}', "id", None),
        ({"prompt": "x", "max_new_tokens": "8"}, "max_new_tokens", "line-1"),
        ({"prompt": "x", "max_new_tokens": 8.0}, "max_new_tokens", "line-1"),
        ({"prompt": "x", "temperature": "hot"}, "temperature", "line-1"),
        (b'{"prompt": "x", "temperature": Infinity}', "temperature", "line-1"),
        ({"prompt": "x", "ignore_eos": 1}, "ignore_eos", "line-1"),
        ({"prompt": "x", "seed": True}, "seed", "line-1"),
    ],
)
def test_a_defect_is_told_by_field_instead_of_raised(line, field, line_id):
    parsed = parse(line)
    assert parsed.request is None
    assert (parsed.problem.field, parsed.id) == (field, line_id)
    assert len(parsed.problem.message) < 200


def test_a_value_out_of_range_is_a_defect_of_the_line():
    assert "top_p" in str(parse({"prompt": "x", "top_p": 1.5}).problem)


def test_a_byte_order_mark_is_no_defect():
    assert parse(b'\xef\xbb\xbf{"prompt": "x"}').request.prompt == "x"


def test_a_line_knows_its_number_its_place_and_the_input_so_far():
    line = parse({"prompt": "x"}, number=3, place=5)
    assert (line.number, line.place, line.digest, line.id) == (3, 5, "digest", "line-3")


def test_a_line_beyond_the_limit_is_a_defect_with_both_sizes():
    line = parse({"prompt": "x" * 5000}, limits=InputLimits(line_bytes=1000))
    assert (line.id, line.problem.field) == (None, "line")
    assert line.problem.message.startswith("5,014 bytes are more than the 1,000 that a line may have")
    assert "max_line_bytes" in line.problem.message


@pytest.mark.parametrize(
    ("line", "field"),
    [({"prompt": "x" * 80}, "prompt"), ({"prompt_token_ids": [1] * 10}, "prompt_token_ids")],
)
def test_a_prompt_beyond_the_context_is_a_defect_before_any_worker_sees_it(line, field):
    problem = parse(line, limits=InputLimits(prompts=PromptLimits(10, 8))).problem
    assert (problem.field, problem.message) == (
        field,
        ("at least " if field == "prompt" else "") + "10 tokens leave no room in a context of 10; shorten the prompt",
    )


LARGE = {
    "key": lambda n: {"x" * n: 1},
    "second key": lambda n: {"prompt": "x", "y" * n: 1},
    "prompt": lambda n: {"prompt": ["x"] * n},
    "id": lambda n: {"id": {"x": "y" * n}, "prompt": "x"},
    "token ids": lambda n: {"prompt_token_ids": "1" * n},
    "stop": lambda n: {"prompt": "x", "stop": "y" * n},
    "stops": lambda n: {"prompt": "x", "stop": ["y"] * n},
    "stop token ids": lambda n: {"prompt": "x", "stop_token_ids": [1] * n},
    "temperature": lambda n: {"prompt": "x", "temperature": "y" * n},
    "nested": lambda n: b'{"prompt": ' + b"[" * n,
    "number": lambda n: b'{"prompt": ' + b"9" * n,
}


@pytest.mark.parametrize("make", LARGE.values(), ids=LARGE)
def test_what_is_wrong_with_a_large_line_is_said_in_a_short_message(make):
    assert len(parse(make(1_000_000)).problem.message) < 400  # the names of all keys are in it


def engine(context, token_bytes):
    values = dict.fromkeys(EngineStats.__dataclass_fields__, 0)
    return EngineStats(**{**values, "context": context, "token_bytes": token_bytes})


def test_the_limit_of_a_line_follows_from_what_the_context_holds():
    assert InputLimits.of(engine(1000, 16)) == InputLimits(6 * 16_000 + (1 << 16), PromptLimits(1000, 16))
    assert InputLimits.of(engine(1000, 2)).line_bytes == 24 * 1000 + (1 << 16)
    assert InputLimits.of(engine(1000, None)).line_bytes == 6 * 64_000 + (1 << 16)
    assert InputLimits.of(engine(1000, 16), line_bytes=5).line_bytes == 5


def test_no_line_that_can_be_served_is_beyond_the_limit():
    escaped = {"prompt": "\x01" * 15_999, "stop": ["\U0001f600" * 256] * 16, "stop_token_ids": [10**6] * 64}
    assert parse(escaped, limits=InputLimits.of(engine(1000, 16))).problem is None


def test_a_line_that_is_given_up_has_no_request_but_keeps_its_id():
    line = give_up(parse({"id": "a", "prompt": "x"}))
    assert (line.id, line.request, line.problem.field) == ("a", None, "line")
    assert "killed its worker 3 times" in line.problem.message
