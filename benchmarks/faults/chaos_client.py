"""A client of `benchmarks.chaos`: looks rows up without pause and compares each with the tables they were made from.

Prints a line for each lookup that failed or was wrong, and writes when each lookup began and how long it took.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from memory_service import ClientConfig, LocalMemory, MemoryClient, MemoryServiceError

_MOST_ROWS = 2000
_PAUSE_S = 0.002  # stands for the computation of a decoding step


def main() -> None:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", required=True, metavar="HOST:PORT", help="any shard")
    parser.add_argument("--snapshot", required=True, metavar="DIR", help="the tables, to compare with")
    parser.add_argument("--records", required=True, type=Path, metavar="FILE", help="where to write the times")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)
    reference = LocalMemory.load(options.snapshot)
    client = MemoryClient.connect(options.memory, 30, ClientConfig(cache_bytes=1 << 20))
    print("ready", flush=True)
    records: list[tuple[float, float]] = []
    try:
        for record in lookups(client, reference, options.seed):
            records.append(record)
    except SystemExit:
        np.save(options.records, np.array(records).reshape(-1, 2))
        print(f"stats {client.stats()}", flush=True)
    client.close()


def lookups(client: MemoryClient, reference: LocalMemory, seed: int) -> Iterator[tuple[float, float]]:
    """Look rows up until stopped: (monotonic time, seconds) of each lookup, seconds NaN for a failed one."""
    rng = np.random.default_rng(seed)
    names = sorted(reference.specs)
    while True:
        table = names[int(rng.integers(len(names)))]
        ids = rng.integers(0, reference.specs[table].rows, int(rng.integers(1, _MOST_ROWS)))
        start = time.monotonic()
        try:
            rows = client.lookup(table, ids).result()
            seconds = time.monotonic() - start
        except MemoryServiceError as error:
            print(f"failed {error}", flush=True)
            seconds = float("nan")
        else:
            expected = reference.lookup(table, ids).result()
            if not np.array_equal(rows.unique[rows.inverse], expected.unique[expected.inverse]):
                print(f"wrong {table}, {len(ids)} rows", flush=True)
        yield start, seconds
        time.sleep(_PAUSE_S)


def _end(*_: object) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    main()
