from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.batch.executors.executor import InProcessExecutor
from cluster.batch.job import run_job
from cluster.batch.options import InputLimits
from cluster.batch.output import JobOutput
from cluster.batch.sidecar import JobIdentity
from memory_service import ShardUnavailable
from reasoning.request import Choice, Completion, RequestFailure, SamplingParams

ROOT = Path(__file__).parents[3]
DEFAULTS = SamplingParams(max_new_tokens=4, seed=1)
IDENTITY = JobIdentity("model", vars(DEFAULTS))


def answer(request):
    if not request.prompt:
        return RequestFailure(request.id, "prompt", "is empty")
    choice = Choice(0, request.prompt.upper(), (len(request.prompt),), "stop")
    return Completion(request.id, (choice,), len(request.prompt))


class FakeWorker:
    """Shouts the prompt back, the last request first."""

    def generate(self, requests):
        return [answer(request) for request in reversed(requests)]

    def stats(self):
        return None


class ShufflingExecutor:
    """Two chunks a worker in flight, finished in any order; fails after `chunks` of them."""

    workers = 3
    outlives_workers = True

    def __init__(self, chunks=10**9):
        self.running, self.left, self.most, self.random = {}, chunks, 0, random.Random(5)

    def has_room(self):
        return len(self.running) < 2 * self.workers

    def submit(self, chunk, requests):
        assert requests
        self.running[chunk] = requests
        self.most = max(self.most, len(self.running))

    def next_done(self):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        chunk = self.random.choice(list(self.running))
        return chunk, [answer(request) for request in self.running.pop(chunk)]


def prompts(tmp_path, count):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"id": i, "prompt": f"p{i}"}) + "\n" for i in range(count)))
    return path


def run(source, target, executor, batch_size=3):
    with JobOutput(target, source, IDENTITY) as output:
        return run_job(source, output, DEFAULTS, executor, batch_size)


def records(target):
    return [json.loads(line) for line in target.read_text().splitlines()]


@pytest.mark.parametrize("executor", [InProcessExecutor(FakeWorker()), ShufflingExecutor()], ids=["here", "shuffled"])
@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_results_come_in_the_order_of_the_input(tmp_path, executor, batch_size):
    report = run(prompts(tmp_path, 100), tmp_path / "out.jsonl", executor, batch_size)
    assert [(r["id"], r["text"]) for r in records(tmp_path / "out.jsonl")] == [(i, f"P{i}") for i in range(100)]
    assert (report.lines, report.errors, report.output_tokens) == (100, 0, 100)


def test_a_record_has_text_token_ids_counts_and_the_reason_it_ended(tmp_path):
    run(prompts(tmp_path, 1), tmp_path / "out.jsonl", InProcessExecutor(FakeWorker()))
    assert records(tmp_path / "out.jsonl") == [
        {"id": 0, "text": "P0", "token_ids": [2], "prompt_tokens": 2, "completion_tokens": 1, "finish_reason": "stop"}
    ]


def test_bad_lines_are_reported_in_their_place(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a"}\n\nnonsense\n{"id": 7, "prompt": ""}\n{"id": "z"}\n{"prompt": "é"}\n')
    report = run(source, tmp_path / "out.jsonl", InProcessExecutor(FakeWorker()), batch_size=2)
    got = records(tmp_path / "out.jsonl")
    assert [(r["id"], r["finish_reason"], r["text"]) for r in got] == [
        ("line-1", "stop", "A"),
        (None, "error", ""),
        (7, "error", ""),
        ("z", "error", ""),
        ("line-5", "stop", "É"),
    ]
    assert [(r["line"], r["error"]["field"], r["token_ids"]) for r in got[1:4]] == [
        (3, "line", []),
        (4, "prompt", []),
        (5, "prompt", []),
    ]
    assert report.errors == 3


def test_a_file_of_bad_lines_only_needs_no_worker(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("x\n" * 100)
    assert run(source, tmp_path / "out.jsonl", ShufflingExecutor(chunks=0), batch_size=1).errors == 100


def test_the_window_is_bounded_while_the_oldest_chunk_is_slow(tmp_path):
    class OldestLast(ShufflingExecutor):
        def next_done(self):
            chunk = max(self.running)
            self.seen = max(getattr(self, "seen", 0), chunk)
            return chunk, [answer(request) for request in self.running.pop(chunk)]

    executor = OldestLast()
    source, seen_when_first_written = prompts(tmp_path, 600), []
    with JobOutput(tmp_path / "out.jsonl", source, IDENTITY) as output:
        write = output.write

        def spy(records, digest):
            seen_when_first_written.append(executor.seen)
            write(records, digest)

        output.write = spy
        run_job(source, output, DEFAULTS, executor, 1)
    assert seen_when_first_written[0] < 8 * executor.workers
    assert executor.most == 6


def test_an_interrupted_job_resumes_without_repeating_or_losing_a_line(tmp_path):
    source, target = prompts(tmp_path, 100), tmp_path / "out.jsonl"
    done = []
    for chunks in (3, 11, 2):
        with pytest.raises(KeyboardInterrupt):
            run(source, target, ShufflingExecutor(chunks))
        done.append(len(records(target)))
        with open(target, "ab") as file:
            file.write(b'{"id": ')
    assert 0 < done[1] <= done[2] < 100
    report = run(source, target, ShufflingExecutor())
    assert [r["text"] for r in records(target)] == [f"P{i}" for i in range(100)]
    assert report.lines == 100 - done[-1]


def test_blank_lines_change_neither_ids_nor_seeds_of_a_job_that_goes_on(tmp_path):
    """A blank line put first and lines appended between two runs: the rest is as in one run without any."""

    class Seeds(ShufflingExecutor):
        def next_done(self):
            chunk, requests = self.running.popitem()
            texts = [(request.id, str(request.sampling.seed)) for request in requests]
            return chunk, [Completion(number, (Choice(0, seed, (1,), "stop"),), 1) for number, seed in texts]

    lines = "".join(f'{{"prompt": "p{i}"}}\n' for i in range(20))
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(lines)
    run(source, tmp_path / "whole.jsonl", Seeds())
    source.write_text("".join(lines.splitlines(keepends=True)[:7]))
    run(source, target, Seeds())
    source.write_text("\n" + lines.replace('{"prompt": "p10"}', '\n  \n{"prompt": "p10"}'))
    run(source, target, Seeds())
    assert records(target) == records(tmp_path / "whole.jsonl")
    assert len({record["text"] for record in records(target)}) == 20


def test_a_line_beyond_the_limit_is_an_error_record_among_the_others(tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "a"}\n' + "[" * 3_000_000 + '\n{"id": "c", "prompt": "c"}\n' + "x" * 3_000_000)
    with JobOutput(target, source, IDENTITY) as output:
        limits = InputLimits(line_bytes=1000)
        report = run_job(source, output, DEFAULTS, InProcessExecutor(FakeWorker()), 2, limits)
    got = records(target)
    assert [(r["id"], r["text"], r.get("line")) for r in got] == [
        ("line-1", "A", None),
        (None, "", 2),
        ("c", "C", None),
        (None, "", 4),
    ]
    assert got[1]["error"]["message"].startswith("3,000,000 bytes are more than the 1,000 that a line may have")
    assert report.errors == 2
    source.write_bytes(source.read_bytes() + b'\n{"prompt": "e"}\n')
    run(source, target, InProcessExecutor(FakeWorker()))
    assert [r["text"] for r in records(target)] == ["A", "", "C", "", "E"]


KILLED = """
import os, signal, sys
from pathlib import Path
from cluster.batch.executors.executor import InProcessExecutor
from cluster.batch.job import run_job
from cluster.batch.options import InputLimits
from cluster.batch.output import JobOutput
from cluster.batch.sidecar import JobIdentity
from memory_service import ShardUnavailable
from reasoning.request import Choice, Completion, SamplingParams

class Mortal:
    def generate(self, requests):
        if any("poison" in request.prompt for request in requests):
            os.kill(os.getpid(), signal.SIGKILL)
        return [Completion(r.id, (Choice(0, r.prompt.upper(), (1,), "stop"),), 1) for r in requests]

source, target = map(Path, sys.argv[1:])
with JobOutput(target, source, JobIdentity("m", {})) as output:
    run_job(source, output, SamplingParams(), InProcessExecutor(Mortal()), 4)
"""


@pytest.mark.slow
def test_a_line_that_kills_its_process_is_given_up_after_a_few_starts(tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts = ["a", "b", "c", "d", "e", "poison", "g", "h", "i"]
    source.write_text("".join(json.dumps({"id": prompt, "prompt": prompt}) + "\n" for prompt in prompts))
    codes = []
    while 0 not in codes and len(codes) < 9:
        codes.append(subprocess.run([sys.executable, "-c", KILLED, source, target], cwd=ROOT).returncode)
    assert codes == [-signal.SIGKILL] * 4 + [0]  # once among others, then three times alone
    got = records(target)
    assert [record["id"] for record in got] == prompts
    assert [record["text"] for record in got] == [*"ABCDE", "", *"GHI"]
    assert got[5]["error"]["field"] == "line"
    assert "killed its worker 3 times" in got[5]["error"]["message"]


class Interrupted:
    """Fails before it has done anything."""

    def __init__(self, error):
        self.error = error

    def generate(self, requests):
        raise self.error


@pytest.mark.parametrize(
    ("error", "deaths"), [(KeyboardInterrupt(), 0), (ShardUnavailable("gone"), 0), (RuntimeError("out of memory"), 1)]
)
def test_only_what_may_be_of_the_lines_doing_counts_against_them(tmp_path, error, deaths):
    source, target = prompts(tmp_path, 5), tmp_path / "out.jsonl"
    with pytest.raises(type(error)):
        run(source, target, InProcessExecutor(Interrupted(error)))
    with JobOutput(target, source, IDENTITY) as output:
        assert (output.attempt.deaths if output.attempt else 0) == deaths
