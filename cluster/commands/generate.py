"""`engram generate`: continue one prompt, or every line of a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.batch.options import JobOptions
from cluster.batch.paths import Use, check_apart, check_writable, model_files
from cluster.batch.records import to_record
from cluster.commands.engine_flags import ENGINE
from cluster.commands.flags import Custom, Flags
from cluster.commands.sampling_flags import SAMPLING
from cluster.workers.options import ClusterOptions
from reasoning.request import Completion, Delta, Request, RequestError, RequestFailure, SamplingParams

if TYPE_CHECKING:
    from cluster.batch.output import JobOutput, Output
    from cluster.batch.stream_output import StreamOutput
    from reasoning.engine.trace import Trace

_DESCRIPTION = """\
Continue one prompt, or every line of a JSONL file.

--prompt generates in this process and prints the continuation as it comes; with --n, the samples when all are done.

--input reads lines such as {"id": "a", "prompt": "def f("}, or {"id": "b", "prompt_token_ids": [4, 8]}. A line may set
for itself what the sampling flags set for all, as in {"prompt": "x", "top_p": 0.9, "stop": ["def", "class"]}; any other
key is an error. --output gets one line for each, in the same order: {"id", "text", "token_ids", "finish_reason",
"prompt_tokens", "completion_tokens"}. With --logprobs it also has "logprobs", with {"token_id", "logprob",
"top": [[token id, logprob], ...]} for each token. With n above 1 all these tell of the first sample, "choices" has
{"index", "text", "token_ids", "finish_reason"} and any "logprobs" of each, and completion_tokens is their sum.

A defective line becomes a record with finish_reason "error", {"error": {"field", "message"}} and the number of the
line in the file; so does a line that is larger than any prompt of the context, or that kills its worker every time.
Blank lines are skipped: they change neither the ids "line-N" of lines without an id nor what is sampled.

An interrupted job continues where it stopped when the same command is run again; so does a finished one whose input has
grown. What a line yields does not depend on --workers, --shards, --batch-size or --max-batch. --batch-size is how many
lines a worker receives at a time, --max-batch how many sequences its engine runs together.
"""
_EPILOG = """\
examples:
  engram generate --model models/tiny-code --prompt 'def quicksort('
  engram generate --model models/tiny-code --prompt 'class ' --temperature 0.8 --top-p 0.95 --n 3 --stop $'\\n\\n'
  engram generate --model models/tiny-code --input in.jsonl --output out.jsonl --max-new-tokens 32
  engram generate --model DIR --input in.jsonl --output out.jsonl --workers 8 --shards 4 --address ray-head:6379
  engram generate --model DIR --input in.jsonl --output out.jsonl --workers 0 --memory 10.0.0.5:7000
  engram generate --model DIR --input in.jsonl --output out.jsonl --max-batch 64 --max-context 8192 --dtype bf16
  engram generate --model DIR --prompt 'import ' --memory 10.0.0.5:7000 --trace out.json
"""
_HOST_PORT = Custom(metavar="HOST:PORT")
_CLUSTER = Flags(ClusterOptions(), {"address": _HOST_PORT, "memory": _HOST_PORT}, skip=["engine"])
_JOB = Flags(JobOptions())


def add_parser(commands: Any, formatter: type[argparse.HelpFormatter]) -> None:
    """Add `generate` to the subparsers of `engram`."""
    parser = commands.add_parser(
        "generate",
        help="continue a prompt, or every line of a file",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=formatter,
    )
    parser.add_argument("--model", metavar="DIR", type=Path, required=True, help="model directory")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="TEXT", help="continue this text and print the continuation")
    what.add_argument("--input", metavar="FILE", type=Path, help="JSONL file with one prompt a line")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="JSONL file to write or continue, or - for standard output (with --input)",
    )
    parser.add_argument("--overwrite", action="store_true", help="start --output over, whatever it holds")
    parser.add_argument("--json", action="store_true", help="with --prompt: print the whole record as JSON")
    parser.add_argument(
        "--trace",
        metavar="FILE",
        type=Path,
        help="write a timeline of steps, lookups and waits, to be opened in https://ui.perfetto.dev (with --prompt, or "
        "--workers 0)",
    )
    SAMPLING.add(parser.add_argument_group("sampling"))
    cluster = parser.add_argument_group("where it runs (with --input; --memory also with --prompt)")
    _CLUSTER.add(cluster)
    _JOB.add(cluster)
    ENGINE.add(parser.add_argument_group("each engine"))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generate for `--prompt` or `--input`."""
    sampling = SAMPLING.read(args)
    options = _CLUSTER.read(args, engine=ENGINE.read(args))
    _check_files(args)
    if args.prompt is not None:
        return _run_prompt(args, sampling, options)
    return _run_batch(args, sampling, options)


def _run_prompt(args: argparse.Namespace, sampling: SamplingParams, options: ClusterOptions) -> int:
    from reasoning.engine import Engine

    if args.output is not None:
        raise ValueError("output: goes with `input`; with `prompt` the text is printed")
    as_it_comes = not args.json and sampling.n == 1
    request = Request(id="1", prompt=args.prompt, sampling=sampling, stream=as_it_comes)
    with _tracing(args.trace) as trace:
        engine = Engine.from_pretrained(args.model, options.memory, options.engine, trace)
        for event in engine.events([request]):
            if isinstance(event, Delta):
                print(event.text, end="", flush=True)
            elif isinstance(event, RequestFailure):
                raise RequestError(event.field, event.message)
            else:
                print(_prompt_output(event, args.json, as_it_comes))
    return 0


def _prompt_output(completion: Completion, as_json: bool, printed: bool) -> str:
    """Return what remains to be printed once all samples of a prompt are finished."""
    if as_json:
        return json.dumps(to_record("prompt", completion), ensure_ascii=False)
    return "" if printed else "\n".join(choice.text for choice in completion.choices)


def _run_batch(args: argparse.Namespace, sampling: SamplingParams, options: ClusterOptions) -> int:
    job = _JOB.read(args)
    _check_batch_arguments(args, options)
    with _open_output(args, sampling, options) as output:
        if output.done == output.total:
            what = f"{args.output} is complete: {output.done:,} lines" if output.total else f"{args.input} has no lines"
            _say(f"{what}, nothing to do")
            return 0
        if output.done:
            _say(f"continuing {args.output} after line {output.done:,} of {output.total:,}")
        with _tracing(args.trace) as trace:
            _generate(args, sampling, options, job, output, trace)
    return 0


def _open_output(
    args: argparse.Namespace, sampling: SamplingParams, options: ClusterOptions
) -> JobOutput | StreamOutput:
    from cluster.batch.output import JobOutput
    from cluster.batch.sidecar import JobIdentity
    from cluster.batch.stream_output import STANDARD_OUTPUT, StreamOutput

    if str(args.output) in STANDARD_OUTPUT:
        _say("writing to standard output: what is interrupted cannot be continued")
        return StreamOutput(args.input)
    identity = JobIdentity.of(args.model, sampling, options.engine)
    return JobOutput(args.output, args.input, identity, args.overwrite)


def _generate(
    args: argparse.Namespace,
    sampling: SamplingParams,
    options: ClusterOptions,
    job: JobOptions,
    output: Output,
    trace: Trace | None,
) -> None:
    """Generate the remaining lines of a job, and print a summary."""
    from cluster.batch.executors.open_executor import open_executor
    from cluster.batch.job import run_job
    from cluster.batch.options import InputLimits
    from cluster.batch.summary import engine_line, job_lines

    with open_executor(args.model, options, trace) as executor:
        engine = executor.stats()[0]
        _say(engine_line(engine))
        limits = InputLimits.of(engine, job.max_line_bytes)
        batch_size = job.batch_size or options.engine.max_batch
        report = run_job(args.input, output, sampling, executor, batch_size, limits)
        for line in job_lines(report, executor.stats()):
            _say(line)


@contextmanager
def _tracing(file: Path | None) -> Iterator[Trace | None]:
    """Yield a trace, which is written to a file when the block ends, also after an error."""
    if file is None:
        yield None
        return
    from reasoning.engine.trace import Trace

    file.touch()  # a path that cannot be written is an error before the work, not after
    trace = Trace()
    try:
        yield trace
    finally:
        trace.write(file)


def _check_batch_arguments(args: argparse.Namespace, options: ClusterOptions) -> None:
    if args.output is None:
        raise ValueError("output: required with `input`; give the file to write")
    if args.json:
        raise ValueError("json: goes with `prompt`; the lines of `output` are JSON already")
    if args.trace is not None and options.workers != 0:
        raise ValueError("trace: goes with `prompt` or `workers` 0; actors on Ray record no timeline")


def _check_files(args: argparse.Namespace) -> None:
    """Refuse to overwrite a file that is read, before anything is written."""
    from cluster.batch.output import output_files
    from cluster.batch.stream_output import STANDARD_OUTPUT

    read, written = [*model_files(args.model)], list[Use]()
    if args.input is not None:
        read.append(Use("input", args.input, "the input"))
    if args.output is not None and str(args.output) not in STANDARD_OUTPUT:
        written += output_files(args.output)
    if args.trace is not None:
        written.append(Use("trace", args.trace, "the trace"))
    for use in written:
        check_writable(use)
    check_apart(read, written)


def _say(text: str) -> None:
    print(f"engram: {text}", file=sys.stderr)
