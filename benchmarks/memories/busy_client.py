"""A client process that looks rows up without pause.

`python -m benchmarks.memories.busy_client ADDRESS TABLE ROWS SECONDS` prints `ready` once its streams are open, starts
at the next line of its standard input, and then prints the rows that it asked for, the seconds that this took, and the
processor seconds that it used.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from contextlib import closing

import numpy as np

from benchmarks.harness.rounds import process_seconds
from memory_service import MemoryClient

REQUESTS = 50  # different ones, taken in turn


def run(address: str, table: str, rows: int, seconds: float, clients: int, servers: list[int]) -> dict[str, float]:
    """Let client processes ask at once.

    Returns:
        rows_s: rows a second of all clients together; client_cpu, server_cpu: processor seconds a second of the
        clients, and of the servers, which are given by their process ids.
    """
    command = [sys.executable, "-m", "benchmarks.memories.busy_client", address, table, str(rows), str(seconds)]
    with contextlib.ExitStack() as stack:
        running = []
        for _ in range(clients):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            running.append(stack.enter_context(process))
            stack.callback(process.kill)
        for process in running:
            assert process.stdout is not None, "it is a pipe"
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("a client did not start, see its messages above")
        before, start = sum(map(process_seconds, servers)), time.perf_counter()
        for process in running:
            assert process.stdin is not None, "it is a pipe"
            process.stdin.write("\n")
            process.stdin.flush()
        results = [json.loads(process.communicate()[0]) for process in running]
        taken, served = time.perf_counter() - start, sum(map(process_seconds, servers)) - before
    return {
        "rows_s": sum(result["rows"] / result["seconds"] for result in results),
        "client_cpu": sum(result["cpu"] / result["seconds"] for result in results),
        "server_cpu": served / taken,
    }


def main() -> None:
    """Ask as the command line says."""
    address, table, rows, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    with closing(MemoryClient.connect(address)) as client:
        rng = np.random.default_rng()
        requests = [rng.integers(0, client.specs[table].rows, rows) for _ in range(REQUESTS)]
        for request in requests:
            client.lookup(table, request).result()
        print("ready", flush=True)
        sys.stdin.readline()
        start, spent, asked = time.perf_counter(), time.process_time(), 0
        while (taken := time.perf_counter() - start) < seconds:
            client.lookup(table, requests[asked % REQUESTS]).result()
            asked += 1
        print(json.dumps({"rows": asked * rows, "seconds": taken, "cpu": time.process_time() - spent}))


if __name__ == "__main__":
    main()
