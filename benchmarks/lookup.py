"""Fetching memory rows: the service with one and two shards, plain Python gRPC, and a gather in this process.

264-byte rows (256 fp8 values and 8 scales) of one random table, distinct random rows in each request, every server in
a process of its own on this machine. The service's figures are those of its whole client: dedup, split, reassembly.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.report import Report, Timing, format_table, parse_arguments, time_interleaved
from benchmarks.rivals.plain_grpc import PlainGrpcClient
from memory_service import MemoryClient, RowFormat, TableSpec, write_snapshot

SIZES = (384, 12_288)
Lookup = Callable[[np.ndarray], object]


def main() -> None:
    """Run the benchmark as the command line says."""
    options = parse_arguments(__doc__)
    spec = table_spec(column_rows=100_000 if options.quick else 1_000_000)
    rng = np.random.default_rng(0)
    packed = rng.integers(0, 255, (spec.rows, spec.row_bytes), np.uint8)
    report = Report("lookup", options.quick)
    report.results = {"table_bytes": packed.nbytes, "row_bytes": spec.row_bytes, "timings": {}}
    with contextlib.ExitStack() as stack:
        rivals = start(stack, spec, packed)
        check(rivals, packed, rng)
        for rows in SIZES:
            timings = measure(rivals, spec.rows, rows, rounds=20 if options.quick else 100)
            report.results["timings"][rows] = {name: timing.as_dict() for name, timing in timings.items()}
            print_timings(rows, timings)
            plain = timings["plain Python gRPC"].p50
            report.ratios[f"plain Python gRPC / service, {rows:,} rows"] = plain / timings["service, 1 shard"].p50
    report.publish(options.json)


def table_spec(column_rows: int) -> TableSpec:
    """A table of V4.1's row format: 4 columns of fp8 vectors of 256 values."""
    return TableSpec(
        name="engram.1",
        layer=1,
        column_rows=(column_rows,) * 4,
        max_ngram=3,
        heads=2,
        multipliers=(1, 3, 5),
        pad_id=0,
        token_map_sha256="0" * 64,
        dim=256,
        row_format=RowFormat.FP8_E4M3_UE8M0,
    )


def start(stack: contextlib.ExitStack, spec: TableSpec, packed: np.ndarray) -> dict[str, Lookup]:
    """Start every server; name -> blocking lookup of row ids."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    np.save(directory / "table.npy", packed)
    write_snapshot(directory / "snapshot", {spec: packed})
    plain = stack.enter_context(process("benchmarks.rivals.plain_grpc", str(directory / "table.npy")))
    grpc_client = PlainGrpcClient(f"127.0.0.1:{plain}", spec.row_bytes)
    rivals: dict[str, Lookup] = {
        "gather in this process": lambda rows: packed.take(rows, axis=0),
        "plain Python gRPC": grpc_client.lookup,
    }
    for shards in (1, 2):
        client = stack.enter_context(service(directory / "snapshot", shards))
        rivals[f"service, {shards} shard{'s' * (shards > 1)}"] = asking(client, spec.name)
    return rivals


def asking(client: MemoryClient, table: str) -> Lookup:
    """Bind a client to a table."""
    return lambda rows: client.lookup(table, rows).result().unique


@contextlib.contextmanager
def process(module: str, *arguments: str) -> Iterator[str]:
    """Run `python -m module` and yield the last word of its first line; it ends with the block."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None, "its output is a pipe"
            yield server.stdout.readline().split()[-1]
        finally:
            server.terminate()


@contextlib.contextmanager
def service(snapshot: Path, shards: int) -> Iterator[MemoryClient]:
    """Serve a snapshot from some plain processes and yield a client of theirs."""
    ports = free_ports(shards)
    peers = ",".join(f"127.0.0.1:{port}" for port in ports)
    with contextlib.ExitStack() as stack:
        for index, port in enumerate(ports):
            place = ["--port", str(port), "--shard-index", str(index), "--peers", peers]
            stack.enter_context(process("memory_service.serve", "--snapshot", str(snapshot), *place))
        client = MemoryClient.connect(f"127.0.0.1:{ports[0]}")
        stack.callback(client.close)
        yield client


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [item.getsockname()[1] for item in sockets]


def check(rivals: dict[str, Lookup], packed: np.ndarray, rng: np.random.Generator) -> None:
    """Every rival must return the right bytes before any is timed."""
    rows = np.sort(rng.choice(len(packed), 1000, replace=False))
    for name, lookup in rivals.items():
        got = np.asarray(lookup(rows))
        assert {row.tobytes() for row in got} == {row.tobytes() for row in packed[rows]}, f"{name} returns wrong rows"


def measure(rivals: dict[str, Lookup], table_rows: int, rows: int, rounds: int) -> dict[str, Timing]:
    """Time each rival on the same sequence of requests, in turn."""

    def asker(lookup: Lookup) -> Callable[[], object]:
        rng = np.random.default_rng(1)
        return lambda: lookup(rng.integers(0, table_rows, rows))

    return time_interleaved({name: asker(lookup) for name, lookup in rivals.items()}, rounds, warmups=3)


def print_timings(rows: int, timings: dict[str, Timing]) -> None:
    """One table for one request size."""
    lines = [
        (name, f"{t.p50 * 1e3:.2f} ms", f"{t.p99 * 1e3:.2f} ms", f"{rows / t.p50 / 1e6:.2f}")
        for name, t in timings.items()
    ]
    print(f"{rows:,} rows a request")
    print(format_table(("", "p50", "p99", "M rows/s"), lines), end="\n\n")


if __name__ == "__main__":
    main()
