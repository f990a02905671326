"""Row ids of a request in bytes: as they lie in memory, with a fixed width, against differences in varints, by numpy.

Microseconds are those of writing and reading together, medians of 200 runs. The ids are of a table of 100 million rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.report import Report, format_table, parse_arguments

COUNTS = (384, 12_288)
TABLE_ROWS = 100_000_000
RUNS, QUICK_RUNS = 200, 20

Ids = NDArray[np.int64]
Encoding = tuple[Callable[[Ids], bytes], Callable[[bytes], Ids]]


def fixed(kind: str) -> Encoding:
    """Numbers of one width."""
    return lambda ids: ids.astype(kind).tobytes(), lambda content: np.frombuffer(content, kind).astype(np.int64)


def to_varints(ids: Ids) -> bytes:
    """Differences between neighbours, zigzag, seven bits a byte."""
    difference = np.diff(ids, prepend=0)
    value = (difference << 1 ^ difference >> 63).view(np.uint64)
    lengths = np.ones(len(ids), np.int64)
    for bits in range(7, 64, 7):
        lengths += value >= 1 << bits
    ends = np.cumsum(lengths)
    out = np.empty(ends[-1], np.uint8)
    for place in range(lengths.max()):
        mine = lengths > place
        more = (lengths[mine] > place + 1).astype(np.uint8) << 7
        out[(ends - lengths)[mine] + place] = (value[mine] >> 7 * place & 127).astype(np.uint8) | more
    return out.tobytes()


def from_varints(content: bytes) -> Ids:
    """What `to_varints` wrote."""
    data = np.frombuffer(content, np.uint8)
    ends = np.flatnonzero(data < 128) + 1
    starts = np.concatenate([[0], ends[:-1]])
    lengths = ends - starts
    value = np.zeros(len(ends), np.uint64)
    for place in range(lengths.max()):
        mine = lengths > place
        value[mine] |= (data[starts[mine] + place] & 127).astype(np.uint64) << 7 * place
    return np.cumsum((value >> 1).view(np.int64) ^ -(value & 1).view(np.int64))


ENCODINGS: dict[str, Encoding] = {
    "uint32": fixed("<u4"),
    "uint64": fixed("<u8"),
    "varint differences": (to_varints, from_varints),
}


def measure(encoding: Encoding, ids: Ids, runs: int) -> tuple[int, float]:
    """Bytes a request, and the median of microseconds for writing and reading it."""
    encode, decode = encoding
    assert np.array_equal(decode(encode(ids)), ids), "it does not give back what it took"
    spent = []
    for _ in range(runs):
        start = time.perf_counter()
        decode(encode(ids))
        spent.append(time.perf_counter() - start)
    return len(encode(ids)), float(np.median(spent)) * 1e6


def main() -> None:
    """Run the benchmark as the command line says."""
    options = parse_arguments(__doc__)
    report = Report("id_encoding", options.quick)
    lines = []
    for count in COUNTS:
        drawn = np.random.default_rng(count).integers(0, TABLE_ROWS, count)
        for order, ids in (("sorted", np.sort(drawn)), ("unsorted", drawn)):
            for name, encoding in ENCODINGS.items():
                size, microseconds = measure(encoding, ids, QUICK_RUNS if options.quick else RUNS)
                report.results[f"{count} {order} {name}"] = {"bytes": size, "microseconds": microseconds}
                lines.append((f"{count:,}", order, name, f"{size:,}", f"{microseconds:.1f}"))
    print(format_table(("ids", "order", "encoding", "bytes", "us"), lines))
    report.publish(options.json)


if __name__ == "__main__":
    main()
