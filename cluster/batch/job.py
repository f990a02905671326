"""The batch job: a bounded window of chunks through an executor, results written in input order."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cluster.batch.executor import Executor
from cluster.batch.lines import Line, parse_line, read_raw
from cluster.batch.output import JobOutput
from reasoning.request import Choice, RequestFailure, Result, SamplingParams

_WINDOW = 8
"""Chunks a worker may be ahead of the oldest unfinished one: bounds what waits in memory to be written in order."""


@dataclass
class JobReport:
    """What one run of a job did."""

    lines: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0


@dataclass
class _Chunk:
    number: int
    lines: list[Line]
    outcomes: list[Result] | None = None

    def records(self) -> list[dict[str, Any]]:
        by_number = {outcome.id: outcome for outcome in self.outcomes or []}
        return [to_record(line, by_number.get(str(line.number))) for line in self.lines]


def run_job(
    source: Path, output: JobOutput, defaults: SamplingParams, executor: Executor, batch_size: int
) -> JobReport:
    """Generate every line of `source` that `output` does not have yet.

    `batch_size` lines go to a worker at a time. A defective line becomes an error record in its place.
    """
    report, started = JobReport(), time.perf_counter()
    with tqdm(total=output.total, initial=output.done, unit="line", disable=None, smoothing=0.1) as bar:
        for chunk in _finished(_chunks(source, output.done, defaults, batch_size), executor):
            records = chunk.records()
            output.write([line.raw for line in chunk.lines], records)
            _count(report, records)
            report.seconds = time.perf_counter() - started
            bar.set_postfix_str(
                f"{report.output_tokens / report.seconds:.0f} tok/s, {report.errors} errors", refresh=False
            )
            bar.update(len(records))
    return report


def to_record(line: Line, outcome: Result | None) -> dict[str, Any]:
    """Return the output record of a line. `outcome` is None for a line that never became a request.

    It tells of the first sample; where there are more, "choices" lists all of them and completion_tokens is their sum.
    """
    if line.problem is not None:
        return _error_record(line, line.problem.field, line.problem.message)
    assert outcome is not None, f"no outcome for line {line.number}"
    if isinstance(outcome, RequestFailure):
        return _error_record(line, outcome.field, outcome.message)
    choices = [_choice_record(choice) for choice in outcome.choices]
    record = {
        "id": line.id,
        **choices[0],
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": sum(len(choice.token_ids) for choice in outcome.choices),
    }
    if len(choices) > 1:
        record["choices"] = [{"index": index, **choice} for index, choice in enumerate(choices)]
    return record


def _choice_record(choice: Choice) -> dict[str, Any]:
    record = {"text": choice.text, "token_ids": list(choice.token_ids), "finish_reason": choice.finish_reason}
    if choice.logprobs is not None:
        record["logprobs"] = [dataclasses.asdict(entry) for entry in choice.logprobs]
    return record


def _error_record(line: Line, field: str, message: str) -> dict[str, Any]:
    return {
        "id": line.id,
        "text": "",
        "token_ids": [],
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "finish_reason": "error",
        "line": line.number,
        "error": {"field": field, "message": message},
    }


def _chunks(source: Path, skip: int, defaults: SamplingParams, size: int) -> Iterator[_Chunk]:
    raws = itertools.islice(read_raw(source), skip, None)
    lines = (parse_line(number, raw, defaults) for number, raw in raws)
    for number in itertools.count():
        if not (group := list(itertools.islice(lines, size))):
            return
        yield _Chunk(number, group)


def _finished(chunks: Iterator[_Chunk], executor: Executor) -> Iterator[_Chunk]:
    """Keep the executor busy, and yield the chunks in order as they are done."""
    window: deque[_Chunk] = deque()
    running: dict[int, _Chunk] = {}
    while True:
        while executor.has_room() and len(window) < _WINDOW * executor.workers and (chunk := next(chunks, None)):
            window.append(chunk)
            _start(chunk, running, executor)
        if not window:
            return
        if window[0].outcomes is not None:
            yield window.popleft()
        else:
            number, outcomes = executor.next_done()
            running.pop(number).outcomes = outcomes


def _start(chunk: _Chunk, running: dict[int, _Chunk], executor: Executor) -> None:
    requests = [line.request for line in chunk.lines if line.request is not None]
    if requests:
        running[chunk.number] = chunk
        executor.submit(chunk.number, requests)
    else:
        chunk.outcomes = []


def _count(report: JobReport, records: Sequence[Mapping[str, Any]]) -> None:
    report.lines += len(records)
    report.errors += sum(record["finish_reason"] == "error" for record in records)
    report.prompt_tokens += sum(record["prompt_tokens"] for record in records)
    report.output_tokens += sum(record["completion_tokens"] for record in records)
