"""Cost of a distant memory: throughput and exposed wait with 0 to 10 ms added to lookups, with and without overlap.

The model has the size of benchmarks.throughput, with random weights, and Engram layers where the paper's 30-layer model
has them, after the first layer and in the middle: the first of 8 layers is all that can hide a trip. The tables are in
this process, random, 24 columns as in V4.1; answers are held back by a timer. Prompts are real code. "decoding" is a
number of sequences that all decode; "mixed" keeps as many busy with requests of 32 to 96 prompt tokens and 24 to 40 new
ones, of which a few wait at any time. All ways of running take turns on a slice of work, at every distance; figures are
medians of the slices, with the range of the ratios to the slice of the same round at 0 ms. Exposed is the part of the
time of steps in which the engine waited for rows.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.harness.report import Report, argument_parser, format_table
from benchmarks.harness.rounds import Spread, take_turns
from benchmarks.harness.text_streams import deepseek_tokenizer
from benchmarks.hashing import load_tokens
from benchmarks.memories.far_memory import FarMemory
from benchmarks.throughput import CONFIG
from memory_service import LocalMemory
from memory_service.tables.random_tables import random_blocks
from reasoning.architectures.deepseek_v3.backbone import DeepseekV3Backbone
from reasoning.config.engram import EngramConfig
from reasoning.engine import Engine
from reasoning.engine.config import EngineConfig
from reasoning.engram.model_hasher import build_hasher, table_specs
from reasoning.request import Request, SamplingParams
from reasoning.text.tokenizer import Tokenizer

MEMORY = EngramConfig(
    layer_ids=(1, 4),
    max_ngram_size=4,
    n_heads=8,
    head_dim=32,
    vocab_size=(40_000,) * 3,
    pad_token_id=2,
    row_format="fp8_e4m3_ue8m0",
)
MODEL = dataclasses.replace(CONFIG, engram=MEMORY)
WAYS: dict[str, dict[str, Any]] = {
    "no overlap": {"overlap": False},
    "1 cohort": {"cohorts": 1},
    "2 cohorts": {"cohorts": 2},
    "chosen": {},
}
LOADS = ("decoding", "mixed")
GOAL_MS = 5
PROMPT_TOKENS = 24  # of sequences that only decode
QUEUED = 4


@dataclass(frozen=True)
class Scale:
    """Size of a measurement."""

    delays_ms: tuple[int, ...]
    """Added latencies; the others are compared with the first."""
    sequences: tuple[int, ...]
    warmup: int
    """Tokens of each sequence before the first slice, in which the engine chooses its cohorts."""
    slice: int
    """Tokens of each sequence in a slice."""
    rounds: int


FULL = Scale((0, 1, 2, 5, 10), (16, 32), warmup=56, slice=5, rounds=16)
QUICK = Scale((0, 5), (16,), warmup=1, slice=3, rounds=2)


@dataclass(frozen=True)
class Slice:
    """Figures of one slice of work."""

    tokens_per_s: float
    exposed: float
    """Share of the time of steps spent waiting for rows."""


class Load:
    """An engine that is kept supplied with requests."""

    def __init__(self, kind: str, sequences: int, engine: Engine, tokens: np.ndarray):
        """`tokens` are the text that prompts are cut from."""
        self.engine, self._sequences = engine, sequences
        self._tokens = tokens
        self._requests = self._mixed() if kind == "mixed" else self._decoding()
        for request in itertools.islice(self._requests, sequences + (QUEUED if kind == "mixed" else 0)):
            engine.add(request)
        while engine.stats().running < sequences:
            self._step()

    def _decoding(self) -> Iterator[Request]:
        """Requests that outlast the measurement."""
        for number in itertools.count():
            yield self._request(number, PROMPT_TOKENS, 4000)

    def _mixed(self) -> Iterator[Request]:
        """Requests that end, the first ones at different times."""
        rng = np.random.default_rng(0)
        for number in itertools.count():
            new_tokens = int(rng.integers(24, 41))
            if number < self._sequences:
                new_tokens = 1 + new_tokens * (number + 1) // self._sequences
            yield self._request(number, int(rng.integers(32, 97)), new_tokens)

    def _request(self, number: int, length: int, new_tokens: int) -> Request:
        start = number * 997 % (len(self._tokens) - length)
        prompt = tuple(self._tokens[start : start + length].tolist())
        return Request(str(number), None, prompt, SamplingParams(max_new_tokens=new_tokens, ignore_eos=True))

    def _step(self) -> None:
        for _ in self.engine.step():
            self.engine.add(next(self._requests))

    def run(self, tokens: int) -> Slice:
        """Generate `tokens` of each sequence on average, after two steps whose rows have landed already."""
        for _ in range(2):
            self._step()
        before = after = self.engine.stats()
        while after.output_tokens - before.output_tokens < tokens * self._sequences:
            self._step()
            after = self.engine.stats()
        seconds = after.busy_s - before.busy_s
        made = after.output_tokens - before.output_tokens
        return Slice(made / seconds, (after.waited_s - before.waited_s) / seconds)


class Bench:
    """A model, its memory, and the engines that run it."""

    def __init__(self) -> None:
        self.tokenizer: Tokenizer = deepseek_tokenizer()
        specs = table_specs(MEMORY, build_hasher(MEMORY, self.tokenizer))
        self.memory = LocalMemory({spec: np.concatenate(list(random_blocks(spec))) for spec in specs})
        self.model = DeepseekV3Backbone(MODEL).initialise(torch.Generator().manual_seed(0)).eval()
        self.tokens, _, self.source = load_tokens(50_000)

    def load(self, stack: ExitStack, kind: str, sequences: int, delay_ms: int, way: str) -> Load:
        """An engine whose memory is `delay_ms` away; the stack closes it."""
        config = EngineConfig(
            max_batch=sequences, max_context=256, prefix_cache=False, drafts="none", **WAYS[way]
        )  # repetitions of a random model must be neither drafted nor shared
        memory = stack.enter_context(closing(FarMemory(self.memory, delay_ms / 1e3)))
        return Load(kind, sequences, Engine(self.model, self.tokenizer, memory, config), self.tokens)

    def measure(self, kind: str, sequences: int, scale: Scale) -> dict[str, dict[int, list[Slice]]]:
        """Slices by way of running and delay."""
        with ExitStack() as stack:
            loads = {
                (way, delay): self.load(stack, kind, sequences, delay, way) for way in WAYS for delay in scale.delays_ms
            }
            for load in loads.values():
                load.run(scale.warmup)
            slices = take_turns({key: partial(load.run, scale.slice) for key, load in loads.items()}, scale.rounds)
            self.cohorts = {delay: loads["chosen", delay].engine.stats().cohorts for delay in scale.delays_ms}
        return {way: {delay: slices[way, delay] for delay in scale.delays_ms} for way in WAYS}


def main() -> None:
    """Run the benchmark as the command line says."""
    parser = argument_parser(__doc__)
    parser.add_argument("--sequences", type=int, nargs="+", metavar="N", help="numbers of sequences to measure")
    options = parser.parse_args()
    scale = QUICK if options.quick else FULL
    scale = dataclasses.replace(scale, sequences=tuple(options.sequences or scale.sequences))
    bench = Bench()
    report = Report("overlap", options.quick)
    report.results = {"source": bench.source, "scale": dataclasses.asdict(scale), "loads": {}}
    for kind, sequences in itertools.product(LOADS, scale.sequences):
        name = f"{kind}, {sequences} sequences"
        results = summary(bench.measure(kind, sequences, scale))
        report.results["loads"][name] = {"ways": results, "cohorts chosen": bench.cohorts}
        print_results(name, results, bench.cohorts)
        for way, by_delay in results.items():
            report.ratios[f"{name}, {way}: throughput at {GOAL_MS} ms / at 0 ms"] = by_delay[GOAL_MS]["ratio"]
    report.publish(options.json)


def summary(slices: dict[str, dict[int, list[Slice]]]) -> dict[str, dict[int, dict[str, Spread]]]:
    """Figures by way of running and delay; `ratio` is the throughput relative to that without delay."""
    return {
        way: {delay: _figures(group, by_delay[0]) for delay, group in by_delay.items()}
        for way, by_delay in slices.items()
    }


def _figures(group: Sequence[Slice], near: Sequence[Slice]) -> dict[str, Spread]:
    rates = [slice.tokens_per_s for slice in group]
    return {
        "tokens_per_s": Spread.of(rates),
        "exposed": Spread.of([slice.exposed for slice in group]),
        "ratio": Spread.of_ratios(rates, [slice.tokens_per_s for slice in near]),
    }


def print_results(name: str, results: dict[str, dict[int, dict[str, Spread]]], cohorts: dict[int, int]) -> None:
    """A table: a line for each way of running, for each delay throughput, its change, and what waiting took."""
    delays = list(cohorts)
    print(f"{name}: tok/s, change against 0 ms, exposed wait")
    lines = [(way, *(_cell(by_delay[delay]) for delay in delays)) for way, by_delay in results.items()]
    lines.append(("cohorts chosen", *map(str, cohorts.values())))
    print(format_table(("", *(f"+{delay} ms" for delay in delays)), lines))
    print(flush=True)


def _cell(result: dict[str, Spread]) -> str:
    rate, ratio, exposed = (result[name].median for name in ("tokens_per_s", "ratio", "exposed"))
    return f"{rate:.0f} {ratio - 1:+.1%} {exposed:.1%}"


if __name__ == "__main__":
    main()
