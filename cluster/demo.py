"""The demo: a local Ray, two memory shards and two reasoning workers continue real Python with the shipped model."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from cluster.batch.job import JobReport
from cluster.batch.summary import job_lines
from cluster.ray_executor import ClusterOptions, open_executor
from reasoning.request import Request, RequestFailure, Result, SamplingParams

MODEL = Path("models/tiny-code")
PROMPTS = (
    'def read_json(path):\n    """Read a JSON file."""\n',
    "import os\nimport sys\n\n\ndef main(argv=None):\n",
    "class Stack:\n    def __init__(self):\n        self._items = []\n\n    def push(self, item):\n",
    "for name, value in sorted(self.items()):\n",
    "    def __repr__(self):\n        return ",
    "    try:\n        return int(text)\n    except ValueError",
    "def test_append(self):\n        a = array.array(self.typecode, self.example)\n",
    'if __name__ == "__main__":\n',
)
_SAMPLING = SamplingParams(max_new_tokens=48)
_DIM, _PLAIN = ("\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "")


def main() -> None:
    """Generate, print, and say what the memory did."""
    options = ClusterOptions(workers=2, shards=2, batch_size=4)
    print(f"Starting Ray with {options.shards} memory shards and {options.workers} reasoning workers ...", flush=True)
    with open_executor(MODEL, options) as executor:
        requests = [Request(str(number), prompt, sampling=_SAMPLING) for number, prompt in enumerate(PROMPTS)]
        started, results = time.perf_counter(), []
        for chunk in range(options.workers):
            executor.submit(chunk, requests[chunk :: options.workers])
        for _ in range(options.workers):
            results += executor.next_done()[1]
        seconds, stats = time.perf_counter() - started, executor.stats()
    for prompt, result in zip(PROMPTS, sorted(results, key=lambda result: int(result.id)), strict=True):
        _show(prompt, result)
    print(*job_lines(_report(results, seconds), stats), sep="\n")


def _show(prompt: str, result: Result) -> None:
    if isinstance(result, RequestFailure):
        sys.exit(f"{result.field}: {result.message}")
    print(f"{'-' * 80}\n{_DIM}{prompt}{_PLAIN}{result.text}")


def _report(results: list[Result], seconds: float) -> JobReport:
    tokens = sum(len(result.token_ids) for result in results if not isinstance(result, RequestFailure))
    return JobReport(lines=len(results), output_tokens=tokens, seconds=seconds)


if __name__ == "__main__":
    main()
