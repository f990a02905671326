"""The batch job: a bounded window of chunks through an executor, results written in input order."""

from __future__ import annotations

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
from cluster.batch.records import error_record, to_record
from reasoning.request import Result, SamplingParams

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
        return [_record(line, by_number.get(str(line.number))) for line in self.lines]


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


def _record(line: Line, result: Result | None) -> dict[str, Any]:
    if line.problem is not None:
        return error_record(line.id, line.problem.field, line.problem.message, line.number)
    assert result is not None, f"no result for line {line.number}"
    return to_record(line.id, result, line.number)


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
