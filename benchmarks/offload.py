"""Cost of offloading the memory: tables on the device, in its host's memory, and in shard processes.

The experiment of arXiv 2601.07372, section 6.4, with this engine: 512 sequences with prompts of 100 to 1,024 tokens and
64 new ones each, through a dense backbone of 4 B parameters with random weights in bf16 and Engram layers 1 and 14
(2- to 4-grams, 8 heads of 256 values in fp8). Tables hold random rows:

  device      on the GPU, gathered by it
  pinned      in page-locked memory of the host, gathered by the GPU over the bus
  shards      in shard processes on this machine, asked over loopback
  large       like shards, as large as the machine's memory holds

The first three have the same rows, as many as the GPU has room for. It has room for one of the ways at a time, so they
cannot take turns: each generates everything four times, of which the first does not count, and ratios have the widest
range that their figures allow. Token ids are drawn evenly, so that hardly two n-grams are alike: no row is requested
twice, the worst case. `--quick` is a tiny model on a few sequences and tells nothing about speed.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers import models

from benchmarks.harness.generated import generated_tokens
from benchmarks.harness.report import Report, argument_parser, describe_device, format_table
from benchmarks.harness.rounds import Spread
from benchmarks.large_table import available_bytes
from benchmarks.memories.random_shard import random_shards
from benchmarks.memories.resident_memory import ResidentMemory, device_table, locked_table
from memory_service import Memory, MemoryClient, RowFormat, TableSpec
from reasoning.architectures.deepseek_v3.backbone import DeepseekV3Backbone
from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.config.engram import EngramConfig
from reasoning.engine import Engine
from reasoning.engine.config import EngineConfig
from reasoning.engram.model_hasher import build_hasher, table_specs
from reasoning.engram.presets import PRESETS
from reasoning.model.batch import PAGE_TOKENS, pages_for
from reasoning.model.devices import DEVICES, choose_device, choose_dtype
from reasoning.request import Request, SamplingParams
from reasoning.text.tokenizer import Tokenizer

BACKBONE = DeepseekV3Config(
    vocab_size=129280,
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=32,
    first_k_dense_replace=32,
    num_attention_heads=32,
    q_lora_rank=None,
)
TINY = DeepseekV3Config(
    vocab_size=500,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    first_k_dense_replace=4,
    num_attention_heads=2,
    kv_lora_rank=32,
    q_lora_rank=None,
    qk_rope_head_dim=16,
    qk_nope_head_dim=16,
    v_head_dim=16,
)
GEOMETRY = PRESETS["deepseek-v4.1-flash"]
"""Geometry of the tables, except for their number of rows."""
ROW_FORMAT = RowFormat.FP8_E4M3_UE8M0
PLACES = ("none", "device", "pinned", "shards", "large")
BASES = ("device", "none")
"""Places that the others are compared with."""
ROUNDS = 3
"""Timed runs of each way, after one that is not."""
HOST_SHARE = 0.7
"""Share of the host's free memory that the largest tables take."""
DEVICE_MARGIN = 8 << 30
"""Device memory that Engram layers need in addition to the backbone, with a margin."""


@dataclass(frozen=True)
class Scale:
    """Size of a run."""

    backbone: DeepseekV3Config
    layers: tuple[int, ...]
    """Layers with a memory."""
    sequences: int
    prompt: tuple[int, int]
    """Tokens of the shortest and the longest prompt."""
    new_tokens: int
    prefill_tokens: int
    shards: int
    table_bytes: int | None = None
    """Bytes of all tables together; None fills the device, or for "large" the host."""


FULL = Scale(BACKBONE, (1, 14), 512, (100, 1024), 64, 8192, 4)
QUICK = Scale(TINY, (1, 3), 6, (10, 90), 6, 128, 2, table_bytes=4 << 20)


@dataclass(frozen=True)
class Run:
    """Figures of one place of the tables."""

    place: str
    table_gb: float
    tokens_per_s: Spread
    """Prompt and new tokens a second."""
    new_tokens_per_s: Spread
    """New tokens a second."""
    exposed: Spread
    """Share of the time in which the host waited for rows; the device may have been busy meanwhile."""
    sha256: str
    """Digest of all new tokens."""


class Bench:
    """A device, a tokenizer, and the requests that run with every place of the tables."""

    def __init__(self, scale: Scale, device: torch.device, directory: Path):
        self.scale, self.device, self.directory = scale, device, directory
        self.dtype = choose_dtype("auto", device)
        self.tokenizer = plain_tokenizer(scale.backbone.vocab_size, directory)
        rng = np.random.default_rng(0)
        lengths = rng.integers(scale.prompt[0], scale.prompt[1] + 1, scale.sequences)
        sampling = SamplingParams(max_new_tokens=scale.new_tokens, ignore_eos=True)
        self.requests = [
            Request(str(i), None, tuple(rng.integers(scale.backbone.vocab_size, size=length).tolist()), sampling)
            for i, length in enumerate(lengths.tolist())
        ]
        self.prompt_tokens = int(lengths.sum())

    def config(self, table_bytes: int) -> DeepseekV3Config:
        """The backbone with Engram layers whose tables together have about `table_bytes`."""
        row_bytes = ROW_FORMAT.row_bytes(GEOMETRY.head_dim)
        rows = table_bytes // (len(self.scale.layers) * GEOMETRY.columns * row_bytes)
        return replace(
            self.scale.backbone,
            engram=EngramConfig(
                layer_ids=self.scale.layers,
                max_ngram_size=GEOMETRY.max_ngram,
                n_heads=GEOMETRY.heads,
                head_dim=GEOMETRY.head_dim,
                vocab_size=(rows,) * len(GEOMETRY.vocab_sizes),
                pad_token_id=GEOMETRY.pad_token_id,
                conv_kernel=4,
                row_format=ROW_FORMAT.value,
            ),
        )

    def specs(self, config: DeepseekV3Config) -> list[TableSpec]:
        """The tables of a model; none where it has no memory."""
        if config.engram is None:
            return []
        return table_specs(config.engram, build_hasher(config.engram, self.tokenizer))

    @contextlib.contextmanager
    def memory(self, place: str, specs: Sequence[TableSpec]) -> Iterator[Memory | None]:
        """Filled tables in the given place."""
        with contextlib.ExitStack() as stack:
            if place == "none":
                yield None
            elif place in ("shards", "large"):
                yield MemoryClient.connect(
                    stack.enter_context(random_shards(specs, self.scale.shards, self.directory)), timeout_s=60
                )
            elif place == "device":
                yield ResidentMemory({spec: device_table(spec, self.device) for spec in specs}, self.device)
            else:
                tables = {spec: stack.enter_context(locked_table(spec, self.device)) for spec in specs}
                yield ResidentMemory(tables, self.device)

    def run(self, place: str, table_bytes: int) -> Run:
        """Generate for all requests, once unmeasured and then in measured rounds."""
        config = self.scale.backbone if place == "none" else self.config(table_bytes)
        specs = self.specs(config)
        begin = time.perf_counter()
        with self.memory(place, specs) as memory, contextlib.closing(self.engine(config, memory)) as engine:
            print(f"{place}: model and tables made in {time.perf_counter() - begin:.0f} s", flush=True)
            tokens = generated_tokens(engine, self.requests)
            rounds = [self.timed(engine) for _ in range(ROUNDS)]
        made = sum(map(len, tokens))
        return Run(
            place,
            sum(spec.rows * spec.row_bytes for spec in specs) / 1e9,
            Spread.of([(self.prompt_tokens + made) / seconds for seconds, _ in rounds]),
            Spread.of([made / seconds for seconds, _ in rounds]),
            Spread.of([exposed for _, exposed in rounds]),
            hashlib.sha256(str(tokens).encode()).hexdigest(),
        )

    def timed(self, engine: Engine) -> tuple[float, float]:
        """Seconds of generating for all requests, and the part of them in which the host waited for rows."""
        before, begin = engine.stats(), time.perf_counter()
        generated_tokens(engine, self.requests)
        seconds, after = time.perf_counter() - begin, engine.stats()
        return seconds, (after.waited_s - before.waited_s) / (after.busy_s - before.busy_s)

    def engine(self, config: DeepseekV3Config, memory: Memory | None) -> Engine:
        """An engine with room for all requests at once."""
        scale = self.scale
        limit = scale.prompt[1] + scale.new_tokens
        pages = sum(pages_for(len(request.prompt_token_ids or ()) + scale.new_tokens) for request in self.requests)
        engine_config = EngineConfig(
            max_batch=scale.sequences,
            max_context=limit,
            prefill_tokens=scale.prefill_tokens,
            cache_tokens=pages * PAGE_TOKENS,
            prefix_cache=False,
            drafts="none",
            lookup_timeout_s=60.0,
        )
        return Engine(random_model(config, self.device, self.dtype), self.tokenizer, memory, engine_config)


def random_model(config: DeepseekV3Config, device: torch.device, dtype: torch.dtype) -> DeepseekV3Backbone:
    """A model with random weights, made on its device; they do not depend on the size of the tables."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = DeepseekV3Backbone(config)
    finally:
        torch.set_default_dtype(before)
    return model.initialise(torch.Generator(device).manual_seed(0)).eval()


def plain_tokenizer(vocab_size: int, directory: Path) -> Tokenizer:
    """A tokenizer of `vocab_size` words, no two of which compress to the same id."""
    words = {f"w{i}": i for i in range(vocab_size)}
    tokenizers.Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(directory / "tokenizer.json"))
    return Tokenizer.from_file(directory)


def free_device_bytes(device: torch.device) -> int:
    """Device memory that was free at the peak of its use so far; huge for a CPU."""
    if device.type != "cuda":
        return 1 << 62
    total = torch.cuda.mem_get_info(device)[1]
    return total - torch.cuda.max_memory_reserved(device)


def main() -> None:
    """Run the benchmark as the command line says."""
    parser = argument_parser(__doc__)
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where the model runs (default %(default)s)")
    parser.add_argument("--places", nargs="+", choices=PLACES, default=PLACES, help="which beside none (default: all)")
    parser.add_argument("--table-gb", type=float, help="of all tables, instead of what the device and the host hold")
    options = parser.parse_args()
    device, scale = choose_device(options.device), QUICK if options.quick else FULL
    if options.table_gb:
        scale = replace(scale, table_bytes=int(options.table_gb * 1e9))
    report = Report("offload", options.quick)
    report.machine |= describe_device(device)
    with tempfile.TemporaryDirectory() as directory:
        runs = run_places(Bench(scale, device, Path(directory)), options.places)
    report.results = {"scale": asdict(scale), "runs": [asdict(run) for run in runs]}
    print(f"{scale.sequences} sequences on {report.machine.get('gpu', 'the CPU')}")
    print_runs(runs, report)
    report.publish(options.json)


def run_places(bench: Bench, places: Sequence[str]) -> list[Run]:
    """Run one place after the other, the plain backbone first: it shows how much room the device has left."""
    runs: list[Run] = []
    host_bytes = int(available_bytes() * HOST_SHARE)
    same_bytes = bench.scale.table_bytes
    for place in sorted({"none", *places}, key=PLACES.index):
        if same_bytes is None and place != "none":
            same_bytes = min(host_bytes, max(1 << 30, free_device_bytes(bench.device) - DEVICE_MARGIN))
        size = host_bytes if place == "large" and bench.scale.table_bytes is None else same_bytes or 0
        runs.append(bench.run(place, size))
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()  # models and tables of the next place come in other sizes
    return runs


def print_runs(runs: Sequence[Run], report: Report) -> None:
    """Print the table, and the ratios to tables on the device and to no memory at all."""
    rates = {run.place: run.tokens_per_s for run in runs}
    lines = [
        (
            run.place,
            f"{run.table_gb:.1f} GB",
            run.tokens_per_s.show("{:,.0f}"),
            run.new_tokens_per_s.show("{:,.0f}"),
            f"{run.exposed.median:.1%}",
            *(f"{rates[run.place].against(rates[base]).median - 1:+.1%}" if base in rates else "" for base in BASES),
        )
        for run in runs
    ]
    header = ("tables", "size", "tok/s", "new tok/s", "host waits", "against device", "against none")
    print(format_table(header, lines))
    for place in rates:
        for base in BASES:
            if base in rates and place != base:
                report.ratios[f"{place} / {base}, tokens a second"] = rates[place].against(rates[base])


if __name__ == "__main__":
    main()
