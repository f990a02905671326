"""Snapshots on a local disk: write whole, write what changed, load with checksums; against plain copies of the bytes.

One table of 264-byte rows (256 fp8 values and 8 scales), one process, one thread. Files are read from the page cache.
Written files are synced to the disk, by every candidate.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.report import Report, format_table, parse_arguments
from benchmarks.harness.rounds import Timing, time_interleaved
from benchmarks.lookup import table_spec
from memory_service import Placement, ShardAddress, Snapshot, TableSpec, extend_snapshot
from memory_service.shard.shard import Shard
from memory_service.tables.random_tables import random_blocks

CHANGED_EVERY = 10
"""One block in ten differs in an incremental snapshot."""


def main() -> None:
    """Run the benchmark as the command line says."""
    options = parse_arguments(__doc__)
    spec = table_spec(column_rows=100_000 if options.quick else 1_000_000)
    packed = np.concatenate(list(random_blocks(spec)))
    with tempfile.TemporaryDirectory() as folder:
        bench = SnapshotBench(Path(folder), spec, packed)
        timings = time_interleaved(bench.reads(), rounds=5) | time_interleaved(bench.writes(), rounds=3)
    report = Report("snapshot", options.quick)
    report.results = {"table_bytes": packed.nbytes, "timings": {k: t.as_dict() for k, t in timings.items()}}
    report.ratios = {
        "plain read / a shard loads": timings["plain read"].over(timings["a shard loads"]),
        "cp / write whole": timings["cp and sync"].over(timings["write whole"]),
        "write whole / write a tenth": timings["write whole"].over(timings["write a tenth"]),
    }
    print_rates(packed.nbytes, timings)
    report.publish(options.json)


class SnapshotBench:
    """The candidates, over a snapshot and a plain file of the same rows."""

    def __init__(self, folder: Path, spec: TableSpec, packed: NDArray[np.uint8]) -> None:
        self._folder = folder
        self._spec = spec
        self._packed = packed
        self._memory = np.ones_like(packed)
        self._turn = 0
        self._plain = folder / "plain"
        packed.tofile(self._plain)
        extend_snapshot(folder / "series", {spec: packed})
        self.load()
        np.testing.assert_array_equal(self._memory, packed)

    def reads(self) -> dict[str, Callable[[], object]]:
        """Whole table from the page cache into memory."""
        return {
            "a shard loads": self.start_shard,
            "read, checksums verified": self.load,
            "plain read": self.read_plain,
        }

    def writes(self) -> dict[str, Callable[[], object]]:
        """Whole table from memory to the disk."""
        return {
            "write whole": self.write_whole,
            "write a tenth": self.write_tenth,
            "nothing changed": self.write_nothing,
            "cp and sync": self.copy,
        }

    def load(self) -> None:
        """Load into memory that is allocated already."""
        snapshot = Snapshot.open(self._folder / "series?generation=0")
        for block, rows in snapshot.read_blocks(self._spec.name, range(self._spec.blocks)):
            start = block * self._spec.block_rows
            self._memory[start : start + len(rows)] = rows

    def start_shard(self) -> None:
        """Load into the arena of a new shard, which allocates as it fills."""
        placement = Placement.build(1, [ShardAddress("shard-0", "")], [self._spec])
        Shard("shard-0").prepare(placement, snapshot_uri=self._folder / "series?generation=0")

    def read_plain(self) -> None:
        """Read the same bytes from one file, without checksums, into the same memory."""
        with self._plain.open("rb", buffering=0) as source:
            view = self._memory.data.cast("B")
            while view:
                view = view[source.readinto(view) or len(view) :]

    def write_whole(self) -> None:
        """Write a new snapshot."""
        shutil.rmtree(self._folder / "fresh", ignore_errors=True)
        extend_snapshot(self._folder / "fresh", {self._spec: self._packed})

    def write_tenth(self) -> None:
        """Write another generation, in which a tenth of the blocks differ from the newest."""
        self._turn += 1
        self._packed[self._turn % 7 :: self._spec.block_rows * CHANGED_EVERY] ^= 1 + self._turn % 255
        extend_snapshot(self._folder / "series", {self._spec: self._packed}, version=self._turn)

    def write_nothing(self) -> None:
        """Write another generation of the same rows."""
        extend_snapshot(self._folder / "series", {self._spec: self._packed}, version=self._turn)

    def copy(self) -> None:
        """Copy the file with cp, and sync it."""
        target = self._folder / "copy"
        target.unlink(missing_ok=True)
        subprocess.run(["cp", str(self._plain), str(target)], check=True)
        with target.open("rb") as written:
            os.fsync(written.fileno())


def print_rates(size: int, timings: dict[str, Timing]) -> None:
    """A table of times, and of the table's bytes by time whether or not they had to be written."""
    lines = [(name, t.spread.show("{:.2f} s"), f"{size / t.p50 / 1e9:.2f}") for name, t in timings.items()]
    print(format_table((f"{size / 1e9:.2f} GB", "median (range)", "GB/s"), lines), end="\n\n")


if __name__ == "__main__":
    main()
