"""Results as JSON records: what a batch job writes for a line, and for a prompt with `--json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from reasoning.request import Choice, Completion, RequestFailure, Result

RecordId = str | int | float | None
"""The user's id of a request; None if it cannot be determined."""


def to_record(record_id: RecordId, result: Result, line: int | None = None) -> dict[str, Any]:
    """Return the record of a result.

    Text, token ids and log-probabilities are those of the first sample. With several samples, "choices" lists all of
    them, and "completion_tokens" is their sum.

    Args:
        record_id: the value of "id".
        result: a completion, or the reason why there is none.
        line: line number in the input file, for the record of a failure.
    """
    if isinstance(result, RequestFailure):
        return error_record(record_id, result.field, result.message, line)
    return _completion_record(record_id, result)


def error_record(record_id: RecordId, field: str, message: str, line: int | None = None) -> dict[str, Any]:
    """Return the record of a request that cannot be served; `field` names the part at fault."""
    where = {} if line is None else {"line": line}
    return {
        "id": record_id,
        "text": "",
        "token_ids": [],
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "finish_reason": "error",
        **where,
        "error": {"field": field, "message": message},
    }


def to_jsonl(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Return records as lines of JSON."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def _completion_record(record_id: RecordId, completion: Completion) -> dict[str, Any]:
    choices = [_choice_record(choice) for choice in completion.choices]
    record = {
        "id": record_id,
        **choices[0],
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": sum(len(choice.token_ids) for choice in completion.choices),
    }
    if len(choices) > 1:
        record["choices"] = [{"index": index, **choice} for index, choice in enumerate(choices)]
    return record


def _choice_record(choice: Choice) -> dict[str, Any]:
    record = {"text": choice.text, "token_ids": list(choice.token_ids), "finish_reason": choice.finish_reason}
    if choice.logprobs is not None:
        record["logprobs"] = [dataclasses.asdict(entry) for entry in choice.logprobs]
    return record
