"""Input lines of a batch job: from JSON to requests, with a reason for each line that cannot become a request."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import xxhash

from cluster.batch.executors.parts import given_up
from cluster.batch.options import InputLimits
from cluster.batch.reading import RawLine
from cluster.batch.records import RecordId
from reasoning.request import SAMPLING_FIELDS, Request, RequestError, SamplingParams

_LONGEST_KEY = 64
_KEYS = ("id", "prompt", "prompt_token_ids", *SAMPLING_FIELDS)


@dataclass(frozen=True)
class Line:
    """A line that is not blank: a request, or the reason why it is not a request."""

    number: int
    """Position among the lines that are not blank, from 1. The default id and the seed of the line derive from it."""
    place: int
    """Line number in the file, from 1, blank lines included."""
    digest: str
    """Digest of the input up to this line."""
    id: RecordId
    """The user's id, "line-N" if the line has none, or None if the line cannot be parsed that far."""
    request: Request | None = None
    """The request; its id is `number`, which is unique even where the users' ids are not."""

    problem: RequestError | None = None
    """Why there is no request."""


def parse_line(raw: RawLine, defaults: SamplingParams, limits: InputLimits) -> Line:
    """Parse a line; a defect is stored in `problem`. `defaults.seed` is the seed of the whole job."""
    line = Line(raw.number, raw.place, raw.digest, None)
    try:
        record = _load(raw, limits.line_bytes)
        line = dataclasses.replace(line, id=_read_id(record, raw.number))
        _check_keys(record)
        prompt, token_ids = _read_prompt(record)
        sampling = _read_sampling(record, raw.number, defaults)
        request = Request(id=str(raw.number), prompt=prompt, prompt_token_ids=token_ids, sampling=sampling)
        if limits.prompts is not None:
            limits.prompts.check(request)
    except RequestError as problem:
        return dataclasses.replace(line, problem=problem)
    return dataclasses.replace(line, request=request)


def give_up(line: Line) -> Line:
    """Return the line without its request, because every process that ran it was killed."""
    failure = given_up(str(line.number), "the process was killed or ran out of memory")
    return dataclasses.replace(line, request=None, problem=RequestError(failure.field, failure.message))


def line_seed(job_seed: int, number: int) -> int:
    """Derive the seed of a line, which does not depend on the worker or the chunk that the line falls in."""
    return xxhash.xxh3_64_intdigest(f"{job_seed}/{number}".encode()) >> 1


def _load(raw: RawLine, limit: int) -> dict[str, Any]:
    if raw.content is None:
        message = f"{raw.size:,} bytes are more than the {limit:,} that a line may have; shorten it or raise the limit"
        raise RequestError("line", f"{message}, max_line_bytes")
    try:
        record = json.loads(raw.content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RequestError("line", f"not UTF-8 at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise RequestError("line", f"not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise RequestError("line", 'not a JSON object; write {"id": ..., "prompt": ...}')
    return record


def _read_id(record: Mapping[str, Any], number: int) -> RecordId:
    value = record.get("id")
    if value is None:
        return f"line-{number}"
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise RequestError("id", f"{_show(value)} is neither a string nor a number")
    if isinstance(value, str):
        _check_unicode("id", value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise RequestError("id", f"{value} is not a finite number")
    return value


def _check_keys(record: Mapping[str, Any]) -> None:
    for key in record:
        if key not in _KEYS:
            near = difflib.get_close_matches(key[:_LONGEST_KEY], _KEYS, cutoff=0.7)
            remedy = f"do you mean {' or '.join(near)}?" if near else f"a line may have {', '.join(_KEYS)}"
            raise RequestError("line", f"unknown key {_show(key)}; {remedy}")


def _read_prompt(record: Mapping[str, Any]) -> tuple[str | None, tuple[int, ...] | None]:
    prompt, token_ids = record.get("prompt"), record.get("prompt_token_ids")
    if (prompt is None) == (token_ids is None):
        raise RequestError(
            "prompt", "give either prompt or prompt_token_ids" + ("" if prompt is None else ", not both")
        )
    if prompt is not None:
        if not isinstance(prompt, str):
            raise RequestError("prompt", f"{_show(prompt)} is not a string")
        _check_unicode("prompt", prompt)
    elif not isinstance(token_ids, list) or not all(type(token_id) is int for token_id in token_ids):
        raise RequestError("prompt_token_ids", f"{_show(token_ids)} is not a list of integers")
    return prompt, None if token_ids is None else tuple(token_ids)


def _read_sampling(record: Mapping[str, Any], number: int, defaults: SamplingParams) -> SamplingParams:
    given = {name: record[name] for name in SAMPLING_FIELDS if record.get(name) is not None}
    if "seed" not in given and defaults.seed is not None:
        given["seed"] = line_seed(defaults.seed, number)
    return dataclasses.replace(defaults, **given)


def _check_unicode(name: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(name, f"has an unpaired surrogate at character {error.start}") from error


def _show(value: Any) -> str:
    text = ascii(value[:60] if isinstance(value, str | list) else value)
    return text if len(text) <= 60 else text[:57] + "..."
