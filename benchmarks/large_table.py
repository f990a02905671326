"""Does a table's size cost anything? Lookups of 384 rows in a table of millions of rows, and how fast a shard loads.

Random 264-byte rows, written as snapshots into a temporary directory and served by one shard process each, as
`engram memory serve` does. Loading is timed from the page cache, less the median time in which a shard of a tiny table
starts. Set TMPDIR to a disk with room for the tables.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.harness.report import Report, argument_parser, format_table
from benchmarks.harness.rounds import Spread, Timing, take_turns, time_interleaved
from benchmarks.harness.servers import memory_shards
from benchmarks.lookup import table_spec
from memory_service import MemoryClient, TableSpec, write_snapshot
from memory_service.tables.random_tables import random_block, random_blocks

MILLION = 1_000_000
SMALL_ROWS = 1 * MILLION
FULL_ROWS = 64 * MILLION
LOADED_ROWS = 8 * MILLION
LOOKUP_ROWS = 384
IN_A_ROW = 10
LOAD_ROUNDS = 5
MEMORY_SHARE = 0.6
GOAL_RATIO, GOAL_RATE = 1.5, 0.8


def main() -> None:
    """Run the benchmark as the command line says."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rows", type=int, help=f"rows of the large table (default: what fits, up to {FULL_ROWS:,})")
    options = parser.parse_args()
    rows = options.rows or (2 * MILLION if options.quick else fitting_rows())
    report = Report("large_table", options.quick)
    with tempfile.TemporaryDirectory() as directory:
        rate = load_rate(Path(directory), SMALL_ROWS if options.quick else LOADED_ROWS)
        timings = time_lookups(Path(directory), [SMALL_ROWS, rows], rounds=10 if options.quick else 50)
    report.results = {"load_gb_per_s": rate, "rows": rows}
    report.results["timings"] = {size: timing.as_dict() for size, timing in timings.items()}
    lines = [(f"{size:,} rows", *timing.milliseconds(3)) for size, timing in timings.items()]
    print(format_table((f"{LOOKUP_ROWS} rows a request", "p50", "p99", "rounds"), lines))
    print(f"a shard loads {rate.show('{:.2f}')} GB/s from the page cache (goal: at least {GOAL_RATE:g})")
    report.ratios[f"{rows:,} rows / {SMALL_ROWS:,} rows (goal: at most {GOAL_RATIO:g})"] = timings[rows].over(
        timings[SMALL_ROWS]
    )
    report.publish(options.json)


def fitting_rows() -> int:
    """Rows of the largest table that fits into 60 % of the free memory, in whole millions."""
    fitting = int(available_bytes() * MEMORY_SHARE) // table_spec(1).row_bytes // MILLION * MILLION
    rows = max(SMALL_ROWS, min(FULL_ROWS, fitting))
    if rows < FULL_ROWS:
        print(f"{rows:,} rows fit into {MEMORY_SHARE:.0%} of the free memory; --rows {FULL_ROWS} asks for all of them")
    return rows


def available_bytes() -> int:
    """Memory available without swapping, including the page cache."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


def load_rate(directory: Path, rows: int) -> Spread:
    """Gigabytes a second at which one shard loads a snapshot that lies in the page cache."""
    empty, table = table_spec(1), table_spec(rows // 4)
    starts = {spec: starter(written(directory / str(spec.rows), spec)) for spec in (empty, table)}
    for start in starts.values():
        start()  # brings the files into the page cache
    seconds = take_turns(starts, LOAD_ROUNDS)
    alone = median(seconds[empty])
    loading = [max(taken - alone, alone / 100) for taken in seconds[table]]  # above 0 however busy the machine is
    return Spread.of([table.rows * table.row_bytes / 1e9 / taken for taken in loading])


def starter(snapshot: Path) -> Callable[[], float]:
    """A function that starts a shard and returns the seconds until it serves."""

    def start() -> float:
        begin = time.perf_counter()
        with memory_shards(snapshot):
            return time.perf_counter() - begin

    return start


def time_lookups(directory: Path, sizes: Sequence[int], rounds: int) -> dict[int, Timing]:
    """Times of a lookup by rows of the table, the tables asked in turn."""
    with contextlib.ExitStack() as stack:
        askers = {rows: start_table(stack, directory, table_spec(rows // 4)) for rows in sizes}
        return time_interleaved(askers, rounds, warmups=20, in_a_row=IN_A_ROW)


def start_table(stack: contextlib.ExitStack, directory: Path, spec: TableSpec) -> Callable[[], object]:
    """Serve a table; returns a function that looks random rows up in it."""
    (server,) = stack.enter_context(memory_shards(written(directory / str(spec.rows), spec)))
    client = MemoryClient.connect(server.address)
    stack.callback(client.close)
    check(client, spec)
    rng = np.random.default_rng(0)
    requests = itertools.cycle([rng.integers(0, spec.rows, LOOKUP_ROWS) for _ in range(1000)])
    return lambda: client.lookup(spec.name, next(requests)).result()


def check(client: MemoryClient, spec: TableSpec) -> None:
    """The last block must be what was written before anything is timed."""
    block = spec.blocks - 1
    rows = np.arange(block * spec.block_rows, spec.rows)
    found = client.lookup(spec.name, rows).result()
    if not np.array_equal(found.unique[found.inverse], random_block(spec, block)):
        raise RuntimeError(f"the service returns wrong rows of a table of {spec.rows:,} rows")


def written(snapshot: Path, spec: TableSpec) -> Path:
    """A snapshot of random rows, written unless it is there."""
    if not snapshot.exists():
        write_snapshot(snapshot, {spec: random_blocks(spec)})
    return snapshot


if __name__ == "__main__":
    main()
