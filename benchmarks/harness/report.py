"""What all benchmarks share: arguments, the description of the machine, tables, and the JSON that they write.

options = parse_arguments(__doc__)
report = Report("hashing", options.quick)
timings = time_interleaved({"ours": ours, "plain numpy": plain}, rounds=20)
report.results["hash"] = {name: timing.as_dict() for name, timing in timings.items()}
report.ratios["plain numpy / ours"] = timings["plain numpy"].over(timings["ours"])
report.publish(options.json)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.rounds import Spread

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
    """Results of one benchmark run; `results` may hold anything JSON can, and dataclasses."""

    benchmark: str
    quick: bool
    machine: dict[str, Any] = field(default_factory=describe_machine)
    versions: dict[str, str] = field(default_factory=installed_versions)
    results: dict[str, Any] = field(default_factory=dict)
    ratios: dict[str, Spread] = field(default_factory=dict)
    """Comparisons of rivals in the same run, by what they compare."""

    def publish(self, json_file: Path | None = None) -> None:
        """Print ratios, machine and versions; write everything to `json_file` if given."""
        for name, ratio in self.ratios.items():
            print(f"{name}: {ratio.show('{:.2f}x')}")
        machine = self.machine
        gpu = f", {machine['gpu']}" if "gpu" in machine else ""
        print(f"machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB{gpu}")
        print("versions: " + ", ".join(f"{k} {v}" for k, v in {"python": machine["python"], **self.versions}.items()))
        if json_file:
            json_file.write_text(json.dumps(asdict(self), indent=2) + "\n")
