"""Training with tables in shards, against the same training with tables in the process.

A step of the shipped model's shape on real code, one worker: tables in this process, in one shard and in three shards,
each shard a process on a host of its own (a network namespace) at no and at 2 ms of added round trip, and with the next
step's rows requested early or not; and with products in bf16. All of them take the same steps from the same beginning,
by turns. Then as many workers as there are cores for, with three shards.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch

from benchmarks.harness.hosts import Host, missing, network
from benchmarks.harness.report import Report, argument_parser, format_table
from benchmarks.harness.rounds import Spread
from benchmarks.harness.servers import HERE, memory_shards
from memory_service.training.control import Attempt, begin_attempt
from memory_service.training.local import LocalLearningMemory
from memory_service.training.memory import LearningMemory
from memory_service.training.remote import RemoteLearningMemory
from reasoning.corpora.config import CorpusConfig
from reasoning.corpora.tokens import Sequences
from reasoning.runs.config import RunConfig
from reasoning.runs.parts import Parts
from reasoning.training.config import TrainingConfig
from reasoning.training.trainer import StepReport, Trainer

ROUND_TRIP_S = 0.002
GOAL = 0.05
BF16 = "in process, bf16"
_STEPS = 1_000_000  # of the schedule: the learning rate hardly changes over the steps that are measured


@dataclass
class Setup:
    """One way of keeping the tables, and what its steps took."""

    trainer: Trainer
    memory: LearningMemory
    early: bool
    """Whether the rows of the next step are requested as soon as a step is committed."""
    reports: list[StepReport] = field(default_factory=list)
    following: Sequences | None = None
    """Sequences of the next step."""


def main() -> None:
    """Run the benchmark as the command line says."""
    parser = argument_parser(__doc__)
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _worker(*options.worker)
    else:
        _compare(options)


def _compare(options: argparse.Namespace) -> None:
    rounds = 3 if options.quick else 12
    with tempfile.TemporaryDirectory() as folder:
        parts = prepare(Path(folder))
        report = Report("train", options.quick)
        with measured(parts, rounds) as setups:
            _report(report, setups)
        _workers(report, parts, 4 if options.quick else 12)
    report.publish(options.json)


def prepare(folder: Path) -> Parts:
    """Tokenize the standard library with the shipped tokenizer, and write the first tables of the shipped shape."""
    corpus = CorpusConfig(tokenizer=Path("models/tiny-code/tokenizer.json"), fim_rate=0.0, packing="files")
    parts = Parts.prepare(RunConfig(folder / "run", TrainingConfig(steps=_STEPS, batch=8), corpus=corpus))
    parts.first_memory()
    return parts


@contextlib.contextmanager
def measured(parts: Parts, rounds: int) -> Iterator[Mapping[str, Setup]]:
    """Take steps by turns in every setup; yield the setups while their memories are open."""
    with contextlib.ExitStack() as stack:
        setups = {
            "in process": _setup(parts, _local(parts), True),
            BF16: _setup(_in_bf16(parts), _local(parts), True),
        }
        for shards in (1, 3):
            setups |= _remote_setups(parts, shards, stack)
        for turn in range(rounds + 1):
            for setup in setups.values():
                report = _step(parts, setup)
                if turn:  # the first warms up
                    setup.reports.append(report)
        yield setups


def _remote_setups(parts: Parts, shards: int, stack: contextlib.ExitStack) -> dict[str, Setup]:
    setups = {}
    reason = missing()
    if reason:
        print(f"hosts of their own for the shards: {reason}. Shards run beside the worker, without added round trip")
    for round_trip_s in (0.0, ROUND_TRIP_S):
        if reason and round_trip_s:
            continue
        for early in (True, False):
            hosts: Sequence[Host] = (HERE,)
            if not reason:
                hosts = stack.enter_context(network(shards, round_trip_s=round_trip_s)).hosts
            memory = stack.enter_context(_remote(parts, shards, hosts))
            name = f"{shards} shard{'s' * (shards > 1)}, {1000 * round_trip_s:g} ms{'' if early else ', not early'}"
            setups[name] = _setup(parts, memory, early)
    return setups


def _in_bf16(parts: Parts) -> Parts:
    training = dataclasses.replace(parts.run.training, precision="bf16")
    return dataclasses.replace(parts, run=dataclasses.replace(parts.run, training=training))


def _local(parts: Parts) -> LocalLearningMemory:
    return LocalLearningMemory(parts.first_memory(), parts.run.training.tables.optimizer)


@contextlib.contextmanager
def _remote(parts: Parts, shards: int, hosts: Sequence[Host]) -> Iterator[RemoteLearningMemory]:
    with memory_shards(Path(parts.first_memory()), shards, hosts=hosts) as servers:
        attempt = begin_attempt(servers[0].address, 1, 0, parts.run.training.tables.optimizer)
        with contextlib.closing(RemoteLearningMemory.connect(servers[0].address, attempt, 0)) as memory:
            yield memory


def _setup(parts: Parts, memory: LearningMemory, early: bool) -> Setup:
    model = parts.new_model(torch.device("cpu"))
    return Setup(Trainer(model, parts.hasher, memory, parts.run.training), memory, early)


def _step(parts: Parts, setup: Setup) -> StepReport:
    number = setup.trainer.step_number + 1
    batch, setup.following = setup.following or parts.sequences(number, 0, 1), parts.sequences(number + 1, 0, 1)
    report = setup.trainer.step(batch, parts.run.training.rate(0.5), setup.following if setup.early else None)
    setup.trainer.finish()  # what is left of it must not run beside the next setup's step
    return report


def _report(report: Report, setups: Mapping[str, Setup]) -> None:
    base = [each.seconds for each in setups["in process"].reports]
    losses = {setup.reports[-1].loss for name, setup in setups.items() if name != BF16}
    rows = []
    for name, setup in setups.items():
        seconds = [each.seconds for each in setup.reports]
        exposed = [(each.rows_wait_s + each.push_wait_s) / each.seconds for each in setup.reports]
        ratio = Spread.of_ratios(seconds, base)
        pushed = getattr(setup.memory, "pushed_bytes", 0) / (setup.reports[-1].tokens * setup.trainer.step_number)
        step, wait = f"{1000 * median(seconds):.0f} ms", Spread.of(exposed).show("{:.1%}")
        rows.append((name, step, ratio.show("{:.2f}x"), wait, f"{pushed:.0f}"))
        report.results[name] = {"seconds": seconds, "exposed": exposed, "pushed_bytes_per_token": pushed}
        report.ratios[f"{name} / in process"] = ratio
    print(format_table(("tables", "step", "to in process", "waiting for memory", "bytes pushed a token"), rows))
    same = "yes" if len(losses) == 1 else sorted(losses)
    print(f"the same loss after {len(base) + 1} steps in all of them but bf16: {same}")
    if (name := f"3 shards, {1000 * ROUND_TRIP_S:g} ms") in setups:
        ratio = report.ratios[f"{name} / in process"]
        print(f"goal: at most {1 + GOAL:.2f}x with three shards at 2 ms; measured {ratio.show('{:.2f}x')}")


def _workers(report: Report, parts: Parts, steps: int) -> None:
    """Tokens a second of 1, 2 and 4 workers, each with a thread of its own, and three shards beside them."""
    cores = len(os.sched_getaffinity(0))
    rates: dict[int, float] = {}
    for ranks in (count for count in (1, 2, 4) if count <= cores):
        with memory_shards(Path(parts.first_memory()), 3) as servers, tempfile.TemporaryDirectory() as rendezvous:
            attempt = begin_attempt(servers[0].address, ranks, 0, parts.run.training.tables.optimizer)
            told = json.dumps([servers[0].address, attempt.incarnation, attempt.version])
            arguments = [str(parts.run.output), told, rendezvous, str(steps)]
            command = [sys.executable, "-m", "benchmarks.train", "--worker", *arguments]
            workers = [
                subprocess.Popen([*command, f"{rank}/{ranks}"], stdout=subprocess.PIPE, text=True)
                for rank in range(ranks)
            ]
            outputs = [worker.communicate()[0] for worker in workers]
        rates[ranks] = float(outputs[0].split()[-1])
        report.results[f"{ranks} workers"] = {"tokens_per_second": rates[ranks]}
    rows = [(str(ranks), f"{rate:,.0f}", f"{rate / rates[1]:.2f}x") for ranks, rate in rates.items()]
    print(format_table(("workers", "tokens/s", "to one"), rows))
    if cores < 4:
        print(f"4 workers need as many cores; this machine has {cores}")


def _worker(output: str, told: str, rendezvous: str, steps: str, place: str) -> None:
    """One of several workers: print the median of the tokens a second of its steps."""
    rank, ranks = map(int, place.split("/"))
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{rendezvous}/store", ranks)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    corpus = CorpusConfig(tokenizer=Path("models/tiny-code/tokenizer.json"), fim_rate=0.0, packing="files")
    parts = Parts.open(RunConfig(Path(output), TrainingConfig(steps=_STEPS, batch=8), corpus=corpus))
    address, incarnation, version = json.loads(told)
    memory = RemoteLearningMemory.connect(address, Attempt(incarnation, ranks, 0, version), rank)
    trainer = Trainer(parts.new_model(torch.device("cpu")), parts.hasher, memory, parts.run.training)
    reports, batch = [], parts.sequences(1, rank, ranks)
    for step in range(1, int(steps) + 2):
        following = parts.sequences(step + 1, rank, ranks)
        reports.append(trainer.step(batch, parts.run.training.rate(0.5), following))
        batch = following
    trainer.finish()
    print(median(report.tokens / report.seconds for report in reports[1:]))
    memory.close()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
