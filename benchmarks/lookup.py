"""Fetching memory rows: the service against a raw socket, Python gRPC, Redis, Mooncake, a gather in this process.

264-byte rows (256 fp8 values and 8 scales) of one random table of a gigabyte, the same random rows asked of all rivals,
every server a process of its own on this machine. The service's figures are those of its whole client: dedup, split,
reassembly. Rivals take turns, ten lookups each; "rounds" is the range of the medians of a turn, ratios are of turns in
the same round. At the end, client processes in growing number ask two shards at once.

The service is native where that is built; ENGRAM_MEMORY_NATIVE=0 measures the implementation in Python.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.harness.certificates import Certificates
from benchmarks.harness.report import Report, format_table, parse_arguments
from benchmarks.harness.rounds import Spread, Timing, take_turns, time_interleaved
from benchmarks.harness.servers import free_ports, memory_shards, module_server
from benchmarks.memories.busy_client import run
from benchmarks.rivals import mooncake_store, redis_mget
from benchmarks.rivals.bare_stream import BareStreamClient
from benchmarks.rivals.plain_grpc import StreamingClient, UnaryClient
from benchmarks.rivals.raw_socket import RawSocketClient
from memory_service import ClientConfig, ClientSecurity, MemoryClient, RowFormat, Rows, TableSpec, write_snapshot

ROUNDS = {384: 60, 1_536: 40, 12_288: 20, 98_304: 6}
QUICK_ROUNDS = {384: 10, 1_536: 10, 12_288: 4, 98_304: 1}
IN_A_ROW = 10  # a model that generates looks rows up all the time
WARMUPS = 3
GATHER, RAW, BARE = "gather in this process", "raw TCP socket", "bare stream"
REDIS, MOONCAKE = "Redis MGET", "Mooncake EngramStore, TCP"
UNARY, STREAMING = "Python gRPC, unary", "Python gRPC, streaming"
SERVICE, TWO_SHARDS, MAPPED, TLS = "service, 1 shard", "service, 2 shards", "service, by mapping", "service, TLS"
MOONCAKE_ROWS, MOONCAKE_ROUNDS = (384, 12_288), 3
CLIENTS = (1, 2, 4, 8)
CLIENT_ROWS, CLIENT_SECONDS, QUICK_CLIENT_SECONDS = 12_288, 4.0, 0.5


Clients = Mapping[str, Spread]
"""What some client processes get: rows a second, and cores that they and the shards use."""


@dataclass(frozen=True)
class Service:
    """A way of using the service."""

    shards: int
    config: ClientConfig
    tls: bool = False


SERVICES = {
    SERVICE: Service(1, ClientConfig()),
    TWO_SHARDS: Service(2, ClientConfig()),
    MAPPED: Service(1, ClientConfig(map_local=True)),
    TLS: Service(1, ClientConfig(), tls=True),
}


@dataclass(frozen=True)
class Goal:
    """The service is to be `at_least` so many times as fast as a rival."""

    rows: int
    rival: str
    service: str
    at_least: float


GOALS = (
    Goal(384, UNARY, SERVICE, 4.0),
    Goal(384, STREAMING, SERVICE, 2.0),
    Goal(12_288, UNARY, SERVICE, 4.0),
    Goal(12_288, STREAMING, SERVICE, 2.0),
    Goal(12_288, REDIS, SERVICE, 10.0),
    Goal(12_288, RAW, SERVICE, 0.8),
    Goal(12_288, GATHER, MAPPED, 0.9),
    Goal(12_288, SERVICE, TLS, 0.5),
)
MOST_CPU = 1.5  # times the processor seconds of the raw socket that the service may take for 12,288 rows


@dataclass(frozen=True)
class Rival:
    """Something that finds rows by their ids."""

    lookup: Callable[[np.ndarray], np.ndarray | Rows]
    pids: tuple[int, ...] = ()
    """Server processes that work for it and for no other rival."""


def main() -> None:
    """Run the benchmark as the command line says."""
    options = parse_arguments(__doc__)
    spec = table_spec(column_rows=100_000 if options.quick else 1_000_000)
    rng = np.random.default_rng(0)
    packed = rng.integers(0, 255, (spec.rows, spec.row_bytes), np.uint8)
    report = Report("lookup", options.quick)
    report.results = {"table_bytes": packed.nbytes, "row_bytes": spec.row_bytes, "timings": {}}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        directory = Path(folder)
        rivals = start(stack, spec, packed, directory)
        check(rivals, packed, rng.integers(0, spec.rows, 2000))
        for rows, rounds in (QUICK_ROUNDS if options.quick else ROUNDS).items():
            timings = measure(rivals, spec.rows, rows, rounds)
            report.results["timings"][rows] = {name: timing.as_dict() for name, timing in timings.items()}
            print_timings(rows, spec.row_bytes, timings)
            report.ratios |= goal_ratios(rows, timings)
        if reason := mooncake_store.missing():
            print(f"{MOONCAKE} is left out: {reason}")
        else:
            report.results["mooncake"] = {}
            for rows in MOONCAKE_ROWS:
                timings = measure_mooncake(rivals[SERVICE], spec, packed.shape, directory / "table.npy", rows)
                report.results["mooncake"][rows] = {name: timing.as_dict() for name, timing in timings.items()}
                print_timings(rows, spec.row_bytes, timings)
        report.results["clients"] = measure_clients(stack, spec, directory / "snapshot", options.quick)
    print_clients(report.results["clients"])
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


def start(stack: contextlib.ExitStack, spec: TableSpec, packed: np.ndarray, directory: Path) -> dict[str, Rival]:
    """Write the table into a directory, start every server and connect to it."""
    table = str(directory / "table.npy")
    np.save(table, packed)
    write_snapshot(directory / "snapshot", {spec: packed})
    raw = stack.enter_context(module_server("benchmarks.rivals.raw_socket", table))
    raw_client = stack.enter_context(contextlib.closing(RawSocketClient(("127.0.0.1", raw.port), spec.row_bytes)))
    rivals = {
        GATHER: Rival(lambda rows: packed.take(rows, axis=0)),
        RAW: Rival(raw_client.lookup, (raw.pid,)),
        UNARY: start_grpc(stack, table, UnaryClient, spec.row_bytes),
        STREAMING: start_grpc(stack, table, StreamingClient, spec.row_bytes),
    }
    if reason := redis_mget.missing():
        print(f"{REDIS} is left out: {reason}")
    else:
        rivals[REDIS] = start_redis(stack, packed)
    rivals[BARE] = start_bare(stack, spec, directory / "snapshot")
    return rivals | {name: start_service(stack, spec, directory / "snapshot", how) for name, how in SERVICES.items()}


def start_grpc(
    stack: contextlib.ExitStack, table: str, client: type[UnaryClient | StreamingClient], row_bytes: int
) -> Rival:
    """Start a server of plain gRPC, and a client of one of the two kinds."""
    server = stack.enter_context(module_server("benchmarks.rivals.plain_grpc", table))
    connected = stack.enter_context(contextlib.closing(client(server.address, row_bytes)))
    return Rival(connected.lookup, (server.pid,))


def start_redis(stack: contextlib.ExitStack, packed: np.ndarray) -> Rival:
    """Start a Redis that holds the table."""
    (port,) = free_ports(1)
    pid = stack.enter_context(redis_mget.redis_server(port))
    redis_mget.fill(port, packed)
    client = stack.enter_context(contextlib.closing(redis_mget.RedisClient(port, packed.shape[1])))
    return Rival(client.lookup, (pid,))


def start_mooncake(stack: contextlib.ExitStack, table: Path, shape: tuple[int, ...]) -> Rival:
    """Start Mooncake's master and a store that holds the table, and a client."""
    master = stack.enter_context(mooncake_store.mooncake_master())
    server = stack.enter_context(module_server("benchmarks.rivals.mooncake_store", str(table), str(master.port)))
    client = stack.enter_context(contextlib.closing(mooncake_store.MooncakeClient(master.port, shape, max(ROUNDS))))
    return Rival(client.lookup, (master.pid, server.pid))


def start_bare(stack: contextlib.ExitStack, spec: TableSpec, snapshot: Path) -> Rival:
    """Start a shard that serves the table, and a client other than the service's."""
    (server,) = stack.enter_context(memory_shards(snapshot))
    client = stack.enter_context(contextlib.closing(BareStreamClient(server.address, spec.name)))
    return Rival(client.lookup, (server.pid,))


def start_service(stack: contextlib.ExitStack, spec: TableSpec, snapshot: Path, how: Service) -> Rival:
    """Start shards that serve the table, and a client."""
    options = ["--share-memory"] if how.config.map_local else []
    security = ClientSecurity()
    if how.tls:
        certificates = Certificates(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        files = certificates.issue("127.0.0.1")
        options += ["--tls-cert", str(files["cert_file"]), "--tls-key", str(files["key_file"])]
        security = ClientSecurity(certificates.ca)
    servers = stack.enter_context(memory_shards(snapshot, how.shards, *options))
    client = MemoryClient.connect(servers[0].address, config=how.config, security=security)
    stack.callback(client.close)
    return Rival(lambda rows: client.lookup(spec.name, rows).result(), tuple(server.pid for server in servers))


def check(rivals: Mapping[str, Rival], packed: np.ndarray, rows: np.ndarray) -> None:
    """Check that every rival returns the right rows before any is timed.

    Raises:
        RuntimeError: one does not.
    """
    for name, rival in rivals.items():
        found = rival.lookup(rows)
        if isinstance(found, Rows):
            found = found.unique[found.inverse]
        if not np.array_equal(found, packed[rows]):
            raise RuntimeError(f"{name} returns wrong rows")


def measure(rivals: Mapping[str, Rival], table_rows: int, rows: int, rounds: int) -> dict[str, Timing]:
    """Time each rival on the same sequence of requests, in turn."""
    rng = np.random.default_rng(rows)
    requests = [rng.integers(0, table_rows, rows) for _ in range(WARMUPS + rounds * IN_A_ROW)]

    def candidate(rival: Rival) -> Callable[[], object]:
        following = itertools.cycle(requests)
        return lambda: rival.lookup(next(following))

    candidates = {name: candidate(rival) for name, rival in rivals.items()}
    servers = {name: rival.pids for name, rival in rivals.items()}
    return time_interleaved(candidates, rounds, WARMUPS, servers, IN_A_ROW)


def measure_mooncake(
    service: Rival, spec: TableSpec, shape: tuple[int, ...], table: Path, rows: int
) -> dict[str, Timing]:
    """Time Mooncake's store and the service alone: its threads are busy also while nobody asks it."""
    with contextlib.ExitStack() as stack:
        rivals = {MOONCAKE: start_mooncake(stack, table, shape), SERVICE: service}
        return measure(rivals, spec.rows, rows, MOONCAKE_ROUNDS)


def print_timings(rows: int, row_bytes: int, timings: Mapping[str, Timing]) -> None:
    """One table for one request size."""
    services = [name for name in SERVICES if name in timings]
    lines = [
        (
            name,
            *t.milliseconds(3),
            f"{rows / t.p50 / 1e6:.2f}",
            *(f"{cpu / (rows * row_bytes) * 1e9:.2f}" for cpu in (t.cpu - t.server_cpu, t.server_cpu)),
            *(f"{t.over(timings[service]).median:.2f}x" for service in services),
        )
        for name, t in timings.items()
    ]
    print(f"{rows:,} rows a request")
    header = (
        "",
        "p50",
        "p99",
        "rounds",
        "M rows/s",
        "client CPU s/GB",
        "server CPU s/GB",
        *(f"/ {name}" for name in services),
    )
    print(format_table(header, lines))
    print()


def measure_clients(stack: contextlib.ExitStack, spec: TableSpec, snapshot: Path, quick: bool) -> dict[int, Clients]:
    """What numbers of client processes get from two shards, when all ask at once."""
    servers = stack.enter_context(memory_shards(snapshot, 2))
    seconds = QUICK_CLIENT_SECONDS if quick else CLIENT_SECONDS
    pids = [server.pid for server in servers]
    runs = take_turns(
        {count: partial(run, servers[0].address, spec.name, CLIENT_ROWS, seconds, count, pids) for count in CLIENTS},
        rounds=1 if quick else 3,
    )
    return {
        count: {figure: Spread.of([measured[figure] for measured in rounds]) for figure in rounds[0]}
        for count, rounds in runs.items()
    }


def print_clients(clients: Mapping[int, Clients]) -> None:
    """One table of what client processes get."""
    print(f"client processes that ask 2 shards for {CLIENT_ROWS:,} rows at a time, without pause")
    lines = [
        (
            str(count),
            figures["rows_s"].show("{:,.0f}"),
            *(figures[figure].show("{:.2f}") for figure in ("client_cpu", "server_cpu")),
        )
        for count, figures in clients.items()
    ]
    print(format_table(("clients", "rows/s of all", "cores used by clients", "cores used by shards"), lines))
    print()


def goal_ratios(rows: int, timings: Mapping[str, Timing]) -> dict[str, Spread]:
    """How many times as fast as its rivals the service is, where there is a goal for it, and its processor time."""
    ratios = {
        f"{rows:,} rows: {goal.rival} / {goal.service} (goal {goal.at_least:g})": timings[goal.rival].over(
            timings[goal.service]
        )
        for goal in GOALS
        if goal.rows == rows and {goal.rival, goal.service} <= timings.keys()
    }
    if rows == CLIENT_ROWS:
        spent = timings[SERVICE].cpu / timings[RAW].cpu
        ratios[f"{rows:,} rows: CPU of {SERVICE} / {RAW} (at most {MOST_CPU:g})"] = Spread.of([spent])
    return ratios


if __name__ == "__main__":
    main()
