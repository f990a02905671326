from __future__ import annotations

import json

import pytest

from cluster.batch.records import to_record
from reasoning.request import Choice, Completion, RequestFailure, TokenLogprob


def test_several_samples_become_choices_and_log_probabilities_become_lists():
    entries = (TokenLogprob(7, -0.5, ((7, -0.5), (2, -1.5))),)
    one = Completion("1", (Choice(0, "a", (7,), "stop", entries),), 3)
    logprobs = [{"token_id": 7, "logprob": -0.5, "top": [[7, -0.5], [2, -1.5]]}]
    record = json.loads(json.dumps(to_record("x", one)))
    assert record == {
        "id": "x",
        "text": "a",
        "token_ids": [7],
        "finish_reason": "stop",
        "logprobs": logprobs,
        "prompt_tokens": 3,
        "completion_tokens": 1,
    }
    two = Completion("1", (Choice(0, "a", (7,), "stop"), Choice(1, "bc", (8, 9), "length")), 3)
    assert to_record("x", two) == {
        "id": "x",
        "text": "a",
        "token_ids": [7],
        "finish_reason": "stop",
        "prompt_tokens": 3,
        "completion_tokens": 3,
        "choices": [
            {"index": 0, "text": "a", "token_ids": [7], "finish_reason": "stop"},
            {"index": 1, "text": "bc", "token_ids": [8, 9], "finish_reason": "length"},
        ],
    }


@pytest.mark.parametrize(("line", "where"), [(None, {}), (7, {"line": 7})])
def test_a_failure_becomes_a_record_of_the_same_shape_with_its_field(line, where):
    failure = RequestFailure("1", "prompt", "is empty")
    assert to_record(3.5, failure, line) == {
        "id": 3.5,
        "text": "",
        "token_ids": [],
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "finish_reason": "error",
        **where,
        "error": {"field": "prompt", "message": "is empty"},
    }
