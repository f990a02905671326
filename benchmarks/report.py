"""What all benchmarks share: arguments, machine description, interleaved timing, tables, and the JSON they write.

options = parse_arguments(__doc__)
report = Report("hashing", options.quick)
timings = time_interleaved({"ours": ours, "plain numpy": plain}, rounds=20)
report.results["hash"] = {name: timing.as_dict() for name, timing in timings.items()}
report.ratios["plain numpy / ours"] = timings["plain numpy"].p50 / timings["ours"].p50
report.publish(options.json)
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "numpy", "pyarrow", "grpcio", "ray", "tokenizers", "redis", "hiredis")


def parse_arguments(description: str | None, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of every benchmark: `quick` (bool) and `json` (Path or None)."""
    return argument_parser(description).parse_args(argv)


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of those options, for a benchmark that has more."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller work and fewer rounds: under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to FILE")
    return parser


def describe_machine() -> dict[str, Any]:
    """CPU model, cores this process may use, memory in GiB, and the Python version."""
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(pages * page_bytes / 2**30, 1),
        "python": platform.python_version(),
    }


def describe_device(device: torch.device) -> dict[str, str]:
    """What to add to the machine's description where models ran on a GPU: its name."""
    import torch  # here, as most benchmarks do without it

    return {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def installed_versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of those of `packages` that are installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


@dataclass(frozen=True)
class Timing:
    """Percentiles of one candidate's runs, in seconds."""

    p50: float
    p99: float
    runs: int
    cpu: float
    """Processor seconds of a run on average, those of the candidate's servers included."""

    @classmethod
    def of(cls, seconds: Sequence[float], cpu: float = 0.0) -> Timing:
        """Summarise measured `seconds`, and the processor seconds `cpu` of all runs together."""
        p50, p99 = np.percentile(seconds, (50, 99)).tolist()
        return cls(p50, p99, len(seconds), cpu / len(seconds))

    def as_dict(self) -> dict[str, float]:
        """For a report's results."""
        return {"p50_s": self.p50, "p99_s": self.p99, "cpu_s": self.cpu, "runs": self.runs}


def time_interleaved(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int,
    warmups: int = 1,
    servers: Mapping[str, Sequence[int]] | None = None,
    in_a_row: int = 1,
) -> dict[str, Timing]:
    """Time each candidate once a round, or some times in a row, in turn and starting with another one each round.

    So a machine that slows down for a while slows all of them down. The collector rests meanwhile. `servers` are the
    processes that work for a candidate and for no other: their processor time counts as its own. What is called all the
    time in its life, and would find cold caches and sleeping servers after the others' turns, is called in a row.
    """
    names = list(candidates)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    cpu = dict.fromkeys(names, 0.0)
    for name in names * warmups:
        candidates[name]()
    before = _server_seconds(servers or {})
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            for i in range(len(names)):
                name = names[(turn + i) % len(names)]
                spent = time.process_time()
                for _ in range(in_a_row):
                    start = time.perf_counter()
                    candidates[name]()
                    seconds[name].append(time.perf_counter() - start)
                cpu[name] += time.process_time() - spent
    finally:
        if was_enabled:
            gc.enable()
    for name, after in _server_seconds(servers or {}).items():
        cpu[name] += after - before[name]
    return {name: Timing.of(measured, cpu[name]) for name, measured in seconds.items()}


def _server_seconds(servers: Mapping[str, Sequence[int]]) -> dict[str, float]:
    return {name: sum(map(process_seconds, pids)) for name, pids in servers.items()}


def process_seconds(pid: int) -> float:
    """Processor seconds that another process has used, to the nanosecond, which /proc/PID/stat rounds to 10 ms.

    The clock's number is what clock_getcpuclockid(3) computes on Linux.
    """
    return time.clock_gettime(~pid << 3 | 2)


def format_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns aligned, the first to the left and the others to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in cells
    )


@dataclass
class Report:
    """Results of one benchmark run; `results` may hold anything JSON can, `ratios` compares rivals of the same run."""

    benchmark: str
    quick: bool
    machine: dict[str, Any] = field(default_factory=describe_machine)
    versions: dict[str, str] = field(default_factory=installed_versions)
    results: dict[str, Any] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)

    def publish(self, json_file: Path | None = None) -> None:
        """Print ratios, machine and versions; write everything to `json_file` if given."""
        for name, ratio in self.ratios.items():
            print(f"{name}: {ratio:.2f}x")
        machine = self.machine
        gpu = f", {machine['gpu']}" if "gpu" in machine else ""
        print(f"machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB{gpu}")
        print("versions: " + ", ".join(f"{k} {v}" for k, v in {"python": machine["python"], **self.versions}.items()))
        if json_file:
            json_file.write_text(json.dumps(asdict(self), indent=2) + "\n")
