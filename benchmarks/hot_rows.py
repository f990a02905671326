"""Which memory rows are hot: how often rows repeat in real text, and what a client's cache of them saves.

Token streams of code and of prose, hashed with the geometry of DeepSeek-V4.1-Flash (24 columns a layer: 8 heads of
2-, 3- and 4-grams, 264-byte rows), go through the client's own cache, a fully associative LRU cache, and Belady's
optimum. The 8 heads of an order repeat at the same tokens, so head 0 of each order is replayed, through an eighth of
the cache; one size is replayed with all 24 columns to show that this gives the same. The table is that of layer 1.
"""

from __future__ import annotations

import argparse
import sysconfig
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.line_chart import Panel, draw
from benchmarks.harness.report import Report, argument_parser, format_table
from benchmarks.harness.text_streams import CODE, PROSE, TextStream, deepseek_tokenizer, read_stream
from benchmarks.memories.cache_models import Accesses, interleave, lru_distances, optimum, previous_use, replay
from memory_service.client.cache import RowCache, set_bytes
from memory_service.tables.spec import TableSpec
from reasoning.engram.hashing import NgramHasher
from reasoning.engram.presets import PRESETS
from reasoning.engram.token_map import TokenMap

LOOKUP_TOKENS = (1, 8, 32, 128, 512, 2048, 8192)
DECODING_STREAMS = (1, 4, 16, 64, 256)
PREFILL = 512  # tokens of a prompt in one lookup
WAYS = 8
MIB = 1 << 20


@dataclass(frozen=True)
class Scale:
    """Size of a study."""

    tokens: int
    """Tokens of each kind of text."""
    sizes: tuple[int, ...]
    """Cache sizes for one table, MiB."""
    some_sizes: tuple[int, ...]
    """Cache sizes for the side questions, MiB."""


FULL = Scale(2_000_000, (16, 64, 256, 512, 1024, 2048, 4096, 8192), (64, 256, 1024, 2048))
QUICK = Scale(100_000, (16, 64, 256, 1024), (64, 256))


class Study:
    """One table, the streams that are hashed into it, and every cache that they are replayed through."""

    def __init__(self, hasher: NgramHasher, texts: Sequence[TextStream], scale: Scale) -> None:
        self.spec: TableSpec = hasher.table_specs("fp8_e4m3_ue8m0")[0]
        self.scale = scale
        self.heads = hasher.geometry.heads
        self.orders = tuple(range(2, hasher.geometry.max_ngram + 1))
        self.all_columns = {text.kind: hash_in_pieces(hasher, text.tokens, self.spec.layer) for text in texts}
        self.rows = {kind: rows[:, :: self.heads] for kind, rows in self.all_columns.items()}
        self.rows["both"] = np.concatenate(list(self.rows.values()))

    def prefill(self, kind: str, streams: int = 1) -> Accesses:
        """Lookups of 512 tokens of one stream, the streams in turn."""
        rows = self.rows[kind]
        return Accesses.of(rows[interleave(len(rows), streams, PREFILL)], PREFILL)

    def decoding(self, kind: str, streams: int) -> Accesses:
        """Lookups of one token of each stream."""
        rows = self.rows[kind]
        return Accesses.of(rows[interleave(len(rows), streams, 1)], streams)

    def cache(self, mib: int, ways: int = WAYS, columns: int | None = None) -> RowCache:
        """The client's cache in all but the bytes of the rows: as many sets as it has at this size, or the share of
        them that falls to `columns` columns, by default one for each order."""
        share = (columns or len(self.orders)) / len(self.spec.column_rows)
        sets = int(mib * MIB * share) // set_bytes(self.spec.rows, self.spec.row_bytes, ways)
        return RowCache(self.spec.rows, 1, sets * set_bytes(self.spec.rows, 1, ways), ways)

    def by_order(self, accesses: Accesses, hits: NDArray[np.bool_]) -> list[float]:
        """Hit rate of each order, then of all."""
        firsts = self.spec.column_offsets[:: self.heads]
        order = np.searchsorted(firsts, accesses.ids, side="right") - 1
        return [float(hits[order == index].mean()) for index in range(len(self.orders))] + [float(hits.mean())]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the study as the command line says."""
    options = arguments(argv, __doc__)
    scale = QUICK if options.quick else FULL
    tokenizer = deepseek_tokenizer()
    count = options.tokens or scale.tokens
    texts = [
        read_stream("code", options.code, CODE, count, tokenizer),
        read_stream("prose", options.prose, PROSE, count, tokenizer),
    ]
    least = max(DECODING_STREAMS) * PREFILL
    if (total := sum(len(text.tokens) for text in texts)) < least:
        raise ValueError(f"tokens: {total:,} are fewer than {least:,}: raise --tokens, or name more --code and --prose")
    study = Study(PRESETS["deepseek-v4.1-flash"].for_token_map(TokenMap.build(tokenizer)), texts, scale)
    report = Report("hot_rows", options.quick)
    report.results["texts"] = {
        text.kind: {"tokens": len(text.tokens), "files": text.files, "sha256": text.sha256} for text in texts
    }
    for text in texts:
        print(f"{text.kind}: {len(text.tokens):,} tokens of {text.files:,} files, sha256 {text.sha256}")
    for question in (distinct_share, new_rows, hit_rates, concurrency, some_orders, associativity, one_head_is_enough):
        started = time.perf_counter()
        report.results[question.__name__] = question(study)
        print(f"({time.perf_counter() - started:.0f} s)\n", flush=True)
    if options.figure:
        options.figure.write_text(figure(report.results))
    report.publish(options.json)


def arguments(
    argv: Sequence[str] | None,
    description: str | None,
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> argparse.Namespace:
    """The options of every benchmark, which text to read, and those that `add_options` adds."""
    packages = Path(sysconfig.get_path("purelib"))
    library = [path for path in Path(sysconfig.get_path("stdlib")).iterdir() if path.name != "site-packages"]
    parser = argument_parser(description)
    parser.add_argument(
        "--code", type=Path, nargs="+", default=[*sorted(library), packages], metavar="DIR", help="with .py files"
    )
    parser.add_argument(
        "--prose", type=Path, nargs="+", default=[packages], metavar="DIR", help="with .txt, .md, .rst or .html files"
    )
    parser.add_argument("--tokens", type=int, help="of each kind, instead of 2 million, or 100,000 with --quick")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="also draw the curves into an SVG")
    add_options(parser)
    return parser.parse_args(argv)


def hash_in_pieces(hasher: NgramHasher, tokens: NDArray[np.int64], layer: int) -> NDArray[np.int64]:
    """Row ids [T, columns] of one layer, without holding those of the others for the whole text."""
    rows = np.empty((len(tokens), hasher.geometry.columns), np.int64)
    for start in range(0, len(tokens), 1 << 16):
        history = tokens[max(0, start - hasher.history_length) : start]
        rows[start : start + (1 << 16)] = hasher.hash(tokens[start : start + (1 << 16)], history)[layer]
    return rows


def distinct_share(study: Study) -> dict[str, Any]:
    """Distinct rows of a lookup as a share of the rows requested."""
    found: dict[str, dict[str, list[float]]] = {}
    for kind in ("code", "prose"):
        rows = study.rows[kind]
        sizes = {str(size): size for size in LOOKUP_TOKENS} | {"all": len(rows)}
        lines = {name: distinct_by_order(rows, size) for name, size in sizes.items()}
        found[f"{kind}, one stream"] = lines
    rows = study.rows["both"]
    found["both, so many streams decoding"] = {
        str(streams): distinct_by_order(rows[interleave(len(rows), streams, 1)], streams)
        for streams in DECODING_STREAMS
    }
    for name, lines in found.items():
        print_table(f"distinct rows of a lookup, share of the rows requested: {name}", study.orders, lines)
    return found


def distinct_by_order(rows: NDArray[np.int64], tokens_a_lookup: int) -> list[float]:
    """Distinct share for each column of `rows`, then for all of them."""
    columns = [Accesses.of(rows[:, [index]], tokens_a_lookup) for index in range(rows.shape[1])]
    shares = [len(column.ids) / column.tokens for column in columns]
    return [*shares, float(np.mean(shares))]


def new_rows(study: Study) -> dict[str, Any]:
    """Rows never seen before as a share of the rows requested, as the text goes by: no cache can save these."""
    found: dict[str, dict[str, list[float]]] = {}
    for kind in ("code", "prose"):
        rows = study.rows[kind]
        fresh = np.stack([previous_use(rows[:, index]) < 0 for index in range(len(study.orders))], axis=1)
        edges = [edge for edge in (0, 125_000, 250_000, 500_000, 1_000_000) if edge < len(rows)] + [len(rows)]
        found[kind] = {
            f"{start:,}-{end:,}": [*fresh[start:end].mean(axis=0).tolist(), float(fresh[start:end].mean())]
            for start, end in pairwise(edges)
        }
        print_table(f"rows never seen before, share of all: {kind}, by token", study.orders, found[kind])
    return found


def hit_rates(study: Study) -> dict[str, Any]:
    """Hit rate by cache size, the client's cache against LRU and the optimum, from a cold start."""
    cases = {
        "code, 1 stream": study.prefill("code"),
        "prose, 1 stream": study.prefill("prose"),
        "both, 64 streams": study.prefill("both", 64),
        "both, 64 streams decoding": study.decoding("both", 64),
    }
    found = {}
    for name, accesses in cases.items():
        previous = previous_use(accesses.ids)
        distances = lru_distances(previous)
        found[name] = {
            str(mib): compare(study, accesses, previous, distances, study.cache(mib)) for mib in study.scale.sizes
        }
        best = study.by_order(accesses, previous >= 0)
        found[name]["any"] = {"of orders": best[:-1], "cache": best[-1], "LRU": best[-1], "optimum": best[-1]}
        found[name]["any"]["second half"] = float((previous >= 0)[len(previous) // 2 :].mean())
        print(f"hit rate by cache size: {name}; rows requested for a token: {rows_a_token(study, accesses):.1f}")
        header = ("MiB", *(f"{order}-gram" for order in study.orders), "all", "LRU", "optimum", "all, second half")
        lines = [
            (mib, *percent([*line["of orders"], line["cache"], line["LRU"], line["optimum"], line["second half"]]))
            for mib, line in found[name].items()
        ]
        print(format_table(header, lines), end="\n\n")
    return found


def compare(
    study: Study,
    accesses: Accesses,
    previous: NDArray[np.int64],
    distances: NDArray[np.int64],
    cache: RowCache,
) -> dict[str, Any]:
    """One size: the client's cache by order, overall and in the second half of the text; ideal caches overall."""
    hits = replay(accesses, cache)
    *orders, overall = study.by_order(accesses, hits)
    return {
        "of orders": orders,
        "cache": overall,
        "LRU": float((distances <= cache.slots).mean()),
        "optimum": float(optimum(previous, cache.slots).mean()),
        "second half": float(hits[len(hits) // 2 :].mean()),
    }


def rows_a_token(study: Study, accesses: Accesses) -> float:
    """Rows requested for one token, in all columns."""
    return len(accesses.ids) / accesses.tokens * study.heads


def concurrency(study: Study) -> dict[str, Any]:
    """Network traffic by number of streams: rows a token, of 24, and the share of lookups that need none."""
    cases = {f"prefill, {streams} streams": study.prefill("both", streams) for streams in DECODING_STREAMS}
    cases |= {f"decoding, {streams} streams": study.decoding("both", streams) for streams in DECODING_STREAMS}
    rows: dict[str, list[float]] = {}
    spared: dict[str, list[float]] = {}
    for name, accesses in cases.items():
        asked = rows_a_token(study, accesses)
        hits = [replay(accesses, study.cache(mib)) for mib in study.scale.some_sizes]
        rows[name] = [asked, *(asked * float((~each).mean()) for each in hits)]
        spared[name] = [float(np.logical_and.reduceat(each, accesses.bounds[:-1]).mean()) for each in hits]
    print("rows a token that cross the network, of 24, by MiB of cache: code and prose")
    header = ("", "no cache", *(f"{mib} MiB" for mib in study.scale.some_sizes))
    print(format_table(header, [(name, *(f"{each:.1f}" for each in line)) for name, line in rows.items()]))
    print("lookups answered by the cache alone")
    print_sizes(study.scale.some_sizes, spared)
    return {"rows a token": rows, "lookups without network": spared}


def some_orders(study: Study) -> dict[str, Any]:
    """Share of all rows that a cache saves when it takes rows of the lower orders only."""
    accesses = study.prefill("both", 64)
    firsts = study.spec.column_offsets[:: study.heads]
    found: dict[str, list[float]] = {}
    for highest in study.orders:
        below = firsts[highest - 1] if highest < study.orders[-1] else study.spec.rows
        chosen = accesses.select(accesses.ids < below)
        hits = [replay(chosen, study.cache(mib)).sum() / len(accesses.ids) for mib in study.scale.some_sizes]
        found[f"2- to {highest}-grams" if highest > 2 else "2-grams only"] = [float(share) for share in hits]
    print("share of all rows saved by caching some orders only: both, 64 streams")
    print_sizes(study.scale.some_sizes, found)
    return found


def associativity(study: Study) -> dict[str, Any]:
    """Hit rate by the number of slots in a set."""
    accesses = study.prefill("both", 64)
    found = {
        f"{ways} ways": [float(replay(accesses, study.cache(mib, ways)).mean()) for mib in study.scale.some_sizes]
        for ways in (1, 2, 4, 8, 16)
    }
    print("hit rate by ways: both, 64 streams")
    print_sizes(study.scale.some_sizes, found)
    return found


def one_head_is_enough(study: Study) -> dict[str, Any]:
    """The same hit rate from all columns of some code as from one head of each order."""
    mib, tokens = study.scale.some_sizes[0], min(500_000, len(study.rows["code"]))
    columns = study.all_columns["code"][:tokens]
    found = {
        "one head of each order": replay(Accesses.of(columns[:, :: study.heads], PREFILL), study.cache(mib)).mean(),
        "all 24 columns": replay(Accesses.of(columns, PREFILL), study.cache(mib, columns=columns.shape[1])).mean(),
    }
    print(f"hit rate at {mib} MiB, {tokens:,} tokens of code")
    print(format_table(("", "all"), [(name, *percent([rate])) for name, rate in found.items()]))
    return {name: float(rate) for name, rate in found.items()}


def percent(shares: Iterable[float]) -> list[str]:
    """Shares as per cent."""
    return [f"{100 * share:.1f} %" for share in shares]


def print_table(title: str, orders: Sequence[int], lines: Mapping[str, Sequence[float]]) -> None:
    """Shares by order, a line each."""
    print(title)
    header = ("", *(f"{order}-gram" for order in orders), "all")
    print(format_table(header, [(name, *percent(line)) for name, line in lines.items()]), end="\n\n")


def print_sizes(sizes: Sequence[int], lines: Mapping[str, Sequence[float]]) -> None:
    """Shares by cache size, a line each."""
    print(format_table(("", *(f"{mib} MiB" for mib in sizes)), [(n, *percent(line)) for n, line in lines.items()]))


def figure(results: Mapping[str, Any]) -> str:
    """Distinct rows by lookup size, and hit rates by cache size: a panel each."""
    panels = []
    for kind in ("code", "prose"):
        lines = {name: line for name, line in results["distinct_share"][f"{kind}, one stream"].items() if name != "all"}
        panels.append(
            Panel(
                f"Distinct rows in a lookup: {kind}", "tokens it covers", [*map(int, lines)], by_order(lines.values())
            )
        )
    for name, lines in results["hit_rates"].items():
        sizes = {mib: line for mib, line in lines.items() if mib != "any"}
        series = by_order(line["of orders"] for line in sizes.values())
        series |= {f"all: {kind}": [line[kind] for line in sizes.values()] for kind in ("cache", "LRU", "optimum")}
        panels.append(Panel(f"Hit rate: {name}", "MiB of cache for one table", [*map(int, sizes)], series))
    return draw(panels)


def by_order(lines: Iterable[Sequence[float]]) -> dict[str, list[float]]:
    """A series for each order, from the shares of each tick."""
    return {f"{order}-gram": list(shares) for order, shares in zip((2, 3, 4), zip(*lines, strict=True), strict=False)}


if __name__ == "__main__":
    main()
