"""The batch job: a bounded window of chunks through an executor, results written in input order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cluster.batch.executors.executor import Executor
from cluster.batch.executors.parts import LINE_ATTEMPTS
from cluster.batch.lines import Line, give_up, parse_line
from cluster.batch.options import InputLimits
from cluster.batch.output import Output
from cluster.batch.reading import read_lines
from cluster.batch.records import error_record, to_record
from cluster.batch.sidecar import Attempt
from memory_service.errors import MemoryServiceError
from reasoning.request import Result, SamplingParams

_WINDOW = 8
"""Chunks per worker between the oldest unfinished chunk and the newest submitted: bounds the results held in memory."""


@dataclass
class JobReport:
    """Totals of a run of a job."""

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

    @property
    def digest(self) -> str:
        return self.lines[-1].digest

    def attempt(self, before: Attempt | None) -> Attempt:
        """Describe these lines as an attempt, with the deaths of the attempt before if it had the same lines."""
        same = before is not None and (before.digest, before.count) == (self.digest, len(self.lines))
        deaths = before.deaths if before is not None and same else 0
        return Attempt(self.lines[0].number, len(self.lines), deaths, self.digest)


def run_job(
    source: Path,
    output: Output,
    defaults: SamplingParams,
    executor: Executor,
    batch_size: int,
    limits: InputLimits | None = None,
) -> JobReport:
    """Generate every line of `source` that `output` does not have yet.

    A defective line becomes an error record in its place, and so does a line that kills its worker every time.

    Args:
        source: a JSONL file.
        output: receives the records in the order of the lines.
        defaults: sampling parameters of lines that set none; its seed is that of the job.
        executor: generates the chunks.
        batch_size: number of lines in a chunk.
        limits: how large a line may be.

    Raises:
        ValueError: records cannot be written, or workers die whatever they run.
        MemoryServiceError: the memory does not answer. The job can be continued in either case.
    """
    report, started = JobReport(), time.perf_counter()
    lines = _lines(source, output, defaults, limits or InputLimits())
    with tqdm(total=output.total, initial=output.done, unit="line", disable=None, smoothing=0.1) as bar:
        for chunk in _finished(_chunks(lines, batch_size, output.attempt), executor, output):
            records = chunk.records()
            output.write(records, chunk.digest)
            _count(report, records)
            report.seconds = time.perf_counter() - started
            bar.set_postfix_str(
                f"{report.output_tokens / report.seconds:.0f} tok/s, {report.errors} errors", refresh=False
            )
            bar.update(len(records))
    return report


def _record(line: Line, result: Result | None) -> dict[str, Any]:
    if line.problem is not None:
        return error_record(line.id, line.problem.field, line.problem.message, line.place)
    assert result is not None, f"no result for line {line.number}"
    return to_record(line.id, result, line.place)


def _lines(source: Path, output: Output, defaults: SamplingParams, limits: InputLimits) -> Iterator[Line]:
    """Yield the lines without a record. A line that has killed `LINE_ATTEMPTS` processes by itself is given up."""
    done, suspect = output.done, output.attempt
    hopeless = suspect.first if suspect and suspect.count == 1 and suspect.deaths >= LINE_ATTEMPTS else None
    for raw in read_lines(source, limits.line_bytes):
        if raw.number > done:
            line = parse_line(raw, defaults, limits)
            yield give_up(line) if raw.number == hopeless else line


def _chunks(lines: Iterable[Line], size: int, suspect: Attempt | None) -> Iterator[_Chunk]:
    """Group lines into chunks. Lines of an attempt that was killed run singly, so that the culprit is found."""
    number, group = 0, list[Line]()
    for line in lines:
        alone = suspect is not None and line.number in suspect
        if group and (alone or len(group) == size or (suspect is not None and group[-1].number in suspect)):
            yield _Chunk(number, group)
            number, group = number + 1, []
        group.append(line)
    if group:
        yield _Chunk(number, group)


def _finished(chunks: Iterator[_Chunk], executor: Executor, output: Output) -> Iterator[_Chunk]:
    """Keep the executor busy, and yield finished chunks in the order of the input."""
    window: deque[_Chunk] = deque()
    running: dict[int, _Chunk] = {}
    suspect = output.attempt
    while True:
        while executor.has_room() and len(window) < _WINDOW * executor.workers and (chunk := next(chunks, None)):
            window.append(chunk)
            _start(chunk, running, executor)
        if not window:
            return
        if window[0].outcomes is not None:
            yield window.popleft()
        elif executor.outlives_workers:
            _take(executor, running)
        else:
            output.begin(window[0].attempt(suspect))
            try:
                _take(executor, running)
            except (KeyboardInterrupt, MemoryServiceError):  # not caused by the lines
                output.begin(None)
                raise


def _start(chunk: _Chunk, running: dict[int, _Chunk], executor: Executor) -> None:
    requests = [line.request for line in chunk.lines if line.request is not None]
    if requests:
        running[chunk.number] = chunk
        executor.submit(chunk.number, requests)
    else:
        chunk.outcomes = []


def _take(executor: Executor, running: dict[int, _Chunk]) -> None:
    number, outcomes = executor.next_done()
    running.pop(number).outcomes = outcomes


def _count(report: JobReport, records: Sequence[Mapping[str, Any]]) -> None:
    report.lines += len(records)
    report.errors += sum(record["finish_reason"] == "error" for record in records)
    report.prompt_tokens += sum(record["prompt_tokens"] for record in records)
    report.output_tokens += sum(record["completion_tokens"] for record in records)
