"""Lookups of real code over the network, with and without the client's cache of hot rows.

One shard in a process of its own on this machine, or as if on another one behind a link of a given speed. Its table has
just the rows that the code reads, in random order: the 264-byte rows and the repeats are those of DeepSeek-V4.1-Flash's
layer 1. Times are of the second half of the lookups.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.hosts import network
from benchmarks.harness.report import Report, format_table
from benchmarks.harness.rounds import Spread, Timing
from benchmarks.harness.servers import HERE, memory_shards
from benchmarks.harness.text_streams import CODE, deepseek_tokenizer, read_stream
from benchmarks.hot_rows import arguments, hash_in_pieces
from benchmarks.lookup import table_spec
from benchmarks.memories.cache_models import interleave
from memory_service import ClientConfig, MemoryClient, write_snapshot
from reasoning.engram.presets import PRESETS
from reasoning.engram.token_map import TokenMap

CACHE_BYTES = 256 << 20
ROUNDS = 10  # slices of the lookups, of which each client's mean is compared


def main() -> None:
    """Run the benchmark as the command line says."""
    options = arguments(None, __doc__, add_options)
    count = options.tokens or (50_000 if options.quick else 300_000)
    tokenizer = deepseek_tokenizer()
    code = read_stream("code", options.code, CODE, count, tokenizer)
    hasher = PRESETS["deepseek-v4.1-flash"].for_token_map(TokenMap.build(tokenizer))
    read, rows = np.unique(hash_in_pieces(hasher, code.tokens, hasher.layer_ids[0]), return_inverse=True)
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(read))[rows].reshape(len(code.tokens), -1)
    spec = table_spec(column_rows=-(-len(read) // 4))
    packed = rng.integers(0, 255, (spec.rows, spec.row_bytes), np.uint8)

    report = Report("cached_lookups", options.quick)
    report.results = {"tokens": len(rows), "distinct_rows": len(read), "sha256": code.sha256, "timings": {}}
    lines = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        write_snapshot(Path(folder) / "snapshot", {spec: packed})
        host = HERE
        if options.gbit_s is not None:
            (host,) = stack.enter_context(network(1, gbit_s=options.gbit_s, adjustable=False)).hosts
        (shard,) = stack.enter_context(memory_shards(Path(folder) / "snapshot", hosts=[host]))
        for name, lookups in series(rows).items():
            with contextlib.ExitStack() as clients:
                plain, cached = (
                    clients.enter_context(closing(connect(shard.address, cache_bytes)))
                    for cache_bytes in (0, CACHE_BYTES)
                )
                seconds = race({"no cache": plain, "cache": cached}, lookups, packed)
                stats = cached.stats()
            hits = stats.cache_hits / (stats.cache_hits + stats.cache_misses)
            slices = {who: np.array_split(times, ROUNDS) for who, times in seconds.items()}
            means = {who: [float(np.mean(times)) for times in parts] for who, parts in slices.items()}
            report.results["timings"][name] = {
                who: {**Timing.of([part.tolist() for part in parts]).as_dict(), "mean_s": Spread.of(means[who])}
                for who, parts in slices.items()
            }
            report.ratios[f"mean with / without cache, {name}"] = Spread.of_ratios(means["cache"], means["no cache"])
            shown = (Spread.of([1e3 * mean for mean in series]).show("{:.2f} ms") for series in means.values())
            asked = (f"{lookups[0].size / np.mean(seconds[who]) / 1e6:.2f}" for who in means)
            lines.append((name, *shown, *asked, f"{100 * hits:.1f} %"))
    header = ("mean (range of slices)", "no cache", "cache", "M rows/s asked, no cache", "cache", "hits")
    print(format_table(header, lines), end="\n\n")
    report.publish(options.json)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark alone."""
    parser.add_argument(
        "--gbit-s", type=float, metavar="N", help="put the shard on a host of its own, behind a link of N Gbit/s"
    )


def series(rows: NDArray[np.int64]) -> dict[str, list[NDArray[np.int64]]]:
    """Lookups of each shape, from row ids [T, columns]."""
    decoding = rows[interleave(len(rows), 16, 1)].reshape(-1, 16, rows.shape[1])
    return {
        "decoding, 1 stream": list(rows[:2000, None]),
        "decoding, 16 streams": list(decoding[:2000]),
        "512 tokens": [rows[start : start + 512] for start in range(0, len(rows) - 511, 512)],
    }


def connect(address: str, cache_bytes: int) -> MemoryClient:
    """A client of the shard with a cache of `cache_bytes`; 0 for none."""
    return MemoryClient.connect(address, config=ClientConfig(cache_bytes=cache_bytes))


def race(
    clients: Mapping[str, MemoryClient], lookups: Sequence[NDArray[np.int64]], packed: NDArray[np.uint8]
) -> dict[str, list[float]]:
    """Seconds of each client's second half of the lookups; they take turns. Some of the answers are checked."""
    seconds: dict[str, list[float]] = {name: [] for name in clients}
    for turn, ids in enumerate(lookups):
        for name in sorted(clients, reverse=turn % 2 == 1):
            start = time.perf_counter()
            answer = clients[name].lookup("engram.1", ids).result()
            seconds[name].append(time.perf_counter() - start)
            if turn % 20 == 0:
                np.testing.assert_array_equal(answer.unique[answer.inverse], packed[ids])
    return {name: times[len(times) // 2 :] for name, times in seconds.items()}


if __name__ == "__main__":
    main()
