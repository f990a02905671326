"""The demo: a local Ray, two memory shards and two reasoning workers continue real Python with the shipped model.

It is a batch job like any other: demo-out/prompts.jsonl in, demo-out/completions.jsonl out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cluster.batch.executors.open_executor import open_executor
from cluster.batch.job import JobReport, run_job
from cluster.batch.output import JobOutput
from cluster.batch.sidecar import JobIdentity
from cluster.batch.summary import job_lines
from cluster.cli import guarded
from cluster.workers.options import ClusterOptions
from reasoning.engine.config import EngineStats
from reasoning.request import SamplingParams

MODEL = Path(__file__).parents[1] / "models" / "tiny-code"
OUTPUT = Path("demo-out")
# No prompt ends in white space: a line break and the indentation after it are a single token for the model to choose.
PROMPTS = (
    'def read_json(path):\n    """Read a JSON file."""',
    "import os\nimport sys\n\n\ndef main(argv=None):",
    "class Stack:\n    def __init__(self):\n        self._items = []\n\n    def push(self, item):",
    "for name, value in sorted(self.items()):",
    "    def __repr__(self):\n        return",
    "    try:\n        return int(text)\n    except ValueError",
    "def test_append(self):\n        a = array.array(self.typecode, self.example)",
    'if __name__ == "__main__":',
)
_SAMPLING = SamplingParams(max_new_tokens=48, temperature=0.4, top_p=0.95, seed=0)
_OPTIONS = ClusterOptions(workers=2, shards=2)
_BATCH_SIZE = 4
_DIM, _PLAIN = ("\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "")


def main() -> int:
    """Run the job, print each prompt with its continuation, and print a summary."""
    print(f"Starting Ray, {_OPTIONS.shards} memory shards and {_OPTIONS.workers} reasoning workers ...", flush=True)
    report, stats = _run()
    records = map(json.loads, (OUTPUT / "completions.jsonl").read_text().splitlines())
    for prompt, record in zip(PROMPTS, records, strict=True):
        print(f"{'-' * 80}\n{_DIM}{prompt}{_PLAIN}{record['text']}")
    print("-" * 80, *job_lines(report, stats), sep="\n")
    return 0


def _run() -> tuple[JobReport, list[EngineStats]]:
    OUTPUT.mkdir(exist_ok=True)
    source = OUTPUT / "prompts.jsonl"
    source.write_text("".join(json.dumps({"id": n, "prompt": p}) + "\n" for n, p in enumerate(PROMPTS)))
    identity = JobIdentity.of(MODEL, _SAMPLING, _OPTIONS.engine)
    with (
        JobOutput(OUTPUT / "completions.jsonl", source, identity, overwrite=True) as output,
        open_executor(MODEL, _OPTIONS) as executor,
    ):
        return run_job(source, output, _SAMPLING, executor, _BATCH_SIZE), executor.stats()


if __name__ == "__main__":
    sys.exit(guarded(main))
