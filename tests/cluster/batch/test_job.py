from __future__ import annotations

import json
import random

import pytest

from cluster.batch.executor import InProcessExecutor
from cluster.batch.job import run_job
from cluster.batch.output import JobIdentity, JobOutput
from reasoning.request import Choice, Completion, RequestFailure, SamplingParams

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
        ("line-6", "stop", "É"),
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

        def spy(raws, records):
            seen_when_first_written.append(executor.seen)
            write(raws, records)

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
