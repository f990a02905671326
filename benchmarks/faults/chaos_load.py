"""The load of `benchmarks.chaos`: its client processes and their results."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.faults.implementations import environment

CLIENTS = 2


class Load:
    """Client processes and their results."""

    def __init__(self, processes: list[subprocess.Popen[str]], records: list[Path]) -> None:
        self._processes = processes
        self._records = records
        self.failures: list[str] = []
        """Messages of clients about lookups that failed or returned wrong rows."""
        self.stats: list[str] = []
        """Counters of each client at the end."""
        self.times = np.empty((0, 2))
        """Monotonic time and seconds of every lookup; filled by `stop`."""
        self._readers = [threading.Thread(target=self._read, args=(process,)) for process in processes]
        for reader in self._readers:
            reader.start()

    @classmethod
    @contextlib.contextmanager
    def on(
        cls, address: str, snapshot: Path, folder: Path, seed: int, implementation: str | None = None
    ) -> Iterator[Load]:
        """Start the clients, of an implementation of the wire, and wait until they have joined."""
        processes, records = [], []
        for number in range(CLIENTS):
            records.append(folder / f"client-{number}.npy")
            options = {"--memory": address, "--snapshot": snapshot, "--records": records[-1], "--seed": seed + number}
            command = [sys.executable, "-m", "benchmarks.faults.chaos_client"]
            command += [str(word) for option in options.items() for word in option]
            chosen = environment(implementation, number)
            processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=chosen))
        try:
            for process in processes:
                assert process.stdout is not None, "its output is a pipe"
                if process.stdout.readline() != "ready\n":
                    sys.exit("a client could not join the memory")
            yield cls(processes, records)
        finally:
            for process in processes:
                process.kill()
                process.wait()

    def stop(self) -> None:
        """End the clients and collect what they measured."""
        for process in self._processes:
            process.terminate()
        for reader in self._readers:
            reader.join()
        self.times = np.concatenate([np.load(path) for path in self._records])

    def between(self, low: float, high: float) -> np.ndarray:
        """Seconds of the lookups that began within a period."""
        began = self.times[:, 0]
        return self.times[(began >= low) & (began < high), 1]

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None, "its output is a pipe"
        for line in process.stdout:
            if line.startswith("stats "):
                self.stats.append(line.removeprefix("stats ").strip())
            else:
                self.failures.append(line.strip())
                print(line, end="", flush=True)
