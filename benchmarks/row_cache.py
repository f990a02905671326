"""What the client's cache of hot rows costs: a get that hits and a put of new rows, against a plain `numpy.take`.

264-byte rows of a table of V4.1's size, sorted random ids, a cache that is full, on one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.report import Report, format_table, parse_arguments
from benchmarks.harness.rounds import Timing, time_interleaved
from memory_service.client.cache import RowCache

TABLE_ROWS, ROW_BYTES = 384_000_000, 264
SIZES = (384, 12_288)
IN_A_ROW = 5


def main() -> None:
    """Run the benchmark as the command line says."""
    options = parse_arguments(__doc__)
    report = Report("row_cache", options.quick)
    cache = RowCache(TABLE_ROWS, ROW_BYTES, (64 if options.quick else 1024) << 20)
    rng = np.random.default_rng(0)
    packed = rng.integers(0, 255, (max(SIZES), ROW_BYTES), np.uint8)
    while cache.evictions < cache.slots // 10:
        put(cache, fresh(rng, max(SIZES)), packed)
    report.results = {"cache_bytes": cache.nbytes, "slots": cache.slots, "timings": {}}
    for rows in SIZES:
        timings = measure(cache, packed, rows, rng, rounds=4 if options.quick else 20)
        report.results["timings"][rows] = {name: timing.as_dict() for name, timing in timings.items()}
        report.ratios[f"get / numpy.take, {rows:,} rows"] = timings["get"].over(timings["numpy.take"])
        print(f"{rows:,} rows, {cache.nbytes >> 20:,} MiB of cache")
        print(format_table(("", "p50", "p99", "rounds"), [(name, *t.milliseconds(3)) for name, t in timings.items()]))
        print()
    report.publish(options.json)


def measure(
    cache: RowCache, packed: NDArray[np.uint8], rows: int, rng: np.random.Generator, rounds: int
) -> dict[str, Timing]:
    """Time gets of rows put shortly before, puts of rows never seen, and takes from an array as large."""
    out = np.empty((rows, ROW_BYTES), np.uint8)
    table = np.ones((cache.slots, ROW_BYTES), np.uint8)
    calls = rounds * IN_A_ROW + 1
    recent = [fresh(rng, rows) for _ in range(calls)]
    for ids in recent:
        put(cache, ids, packed)
    held = [ids[cache.get(ids, out[: len(ids)])[0]] for ids in recent]
    return time_interleaved(
        {
            "numpy.take": each(
                lambda places: table.take(places, axis=0, out=out, mode="clip"),
                rng.integers(0, len(table), (calls, rows)),
            ),
            "get": each(lambda ids: cache.get(ids, out[: len(ids)]), held),
            "put": each(lambda ids: put(cache, ids, packed), [fresh(rng, rows) for _ in range(calls)]),
        },
        rounds,
        in_a_row=IN_A_ROW,
    )


def each(call: Callable[[NDArray[np.int64]], object], inputs: Iterable[NDArray[np.int64]]) -> Callable[[], object]:
    """A candidate that takes the next of its inputs at each call."""
    coming = iter(inputs)
    return lambda: call(next(coming))


def fresh(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Sorted distinct ids, `count` of them but for a rare repeat."""
    return np.unique(rng.integers(0, TABLE_ROWS, count))


def put(cache: RowCache, ids: NDArray[np.int64], packed: NDArray[np.uint8]) -> None:
    """Put some bytes as the rows of `ids`."""
    cache.put(ids, packed[: len(ids)], 0)


if __name__ == "__main__":
    main()
