"""`engram corpus`: build a corpus to train on from folders and source packages."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.commands.flags import Custom, Flags
from reasoning.corpora.config import PACKINGS, SPLITS, CorpusConfig

if TYPE_CHECKING:
    from reasoning.corpora.manifest import Manifest

_CONFIG = Flags(
    CorpusConfig(),
    {"packing": Custom(choices=PACKINGS), "split": Custom(choices=SPLITS), "tokenizer": Custom(metavar="PATH")},
    skip=["sources", "suffixes"],
)
_DESCRIPTION = """\
Build a corpus: read sources, clean their files, hold some projects out, drop duplicates, tokenize and pack the rest.

--output becomes a directory with shards of token sequences for training (train-*.arrow) and for evaluation
(held-out-*.arrow), lists of the documents in them, tokenizer.json and corpus.json, which describes all of it. It
appears when everything is done. Nothing of a package is ever executed or unpacked to disk.
"""
_EPILOG = """\
examples:
  engram corpus --output corpora/stdlib
  engram corpus --output corpora/mine --source '~/src/*/' --source pypi:attrs --source debian:hello --suffix .c
  engram corpus --output corpora/tuning --source ~/src/project --tokenizer models/tiny-code --fim-rate 0
"""


def add_parser(commands: Any, formatter: type[argparse.HelpFormatter]) -> None:
    """Add `corpus` to the subparsers of `engram`."""
    parser = commands.add_parser(
        "corpus",
        help="build a corpus from folders and source packages",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=formatter,
    )
    defaults = CorpusConfig()
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="directory of the corpus to make")
    parser.add_argument(
        "--source",
        dest="sources",
        metavar="SOURCE",
        action="append",
        help="where files come from: stdlib, a folder, a quoted glob of folders, debian:NAME[=VERSION] or "
        f"pypi:NAME[==VERSION]; may be repeated (default {' '.join(defaults.sources)})",
    )
    parser.add_argument(
        "--suffix",
        dest="suffixes",
        metavar="SUFFIX",
        action="append",
        help=f"end of the names of the files to take; may be repeated (default {' '.join(defaults.suffixes)})",
    )
    parser.add_argument(
        "--cache", metavar="DIR", type=Path, help="folder that keeps downloads (default ~/.cache/engram-ray/sources)"
    )
    _CONFIG.add(parser.add_argument_group("corpus"))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Build a corpus, or find that it is there."""
    defaults = CorpusConfig()
    sources = tuple(args.sources or defaults.sources)
    config = _CONFIG.read(args, sources=sources, suffixes=tuple(args.suffixes or defaults.suffixes))
    from reasoning.corpora.build import build_corpus, find_corpus

    manifest = find_corpus(config, args.output)
    if manifest is not None:
        print(f"{args.output}: this corpus is there already, its sources are not read again; delete it to rebuild it")
    else:
        manifest = build_corpus(config, args.output, args.cache, progress=sys.stderr.isatty())
    print("\n".join(report(manifest)))
    return 0


def report(manifest: Manifest) -> Iterator[str]:
    """Yield the lines of two tables: what became of the files of each source, and what the corpus holds."""
    sources = [("source", "version", "files", "bytes", "left out")]
    for source in manifest.sources:
        dropped = sorted(source.dropped.items(), key=lambda item: (-item[1], item[0]))
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped)
        sources.append((source.source, source.version or "", f"{source.kept:,}", f"{source.kept_bytes:,}", reasons))
    yield from _table(sources, numbers=(2, 3))
    yield ""
    sides: list[tuple[str, ...]] = [("split", "projects", "files", "documents", "tokens", "sequences", "bytes")]
    for name, side in (("train", manifest.train), ("held-out", manifest.held_out)):
        counts = (len(side.projects), side.files, side.documents.rows, side.tokens, side.sequences, side.text_bytes)
        sides.append((name, *(f"{count:,}" for count in counts)))
    yield from _table(sides, numbers=range(1, 7))
    yield ""
    yield (
        f"window {manifest.window}, vocabulary {manifest.vocab_size:,}, split by {manifest.split}, "
        f"fingerprint {manifest.fingerprint}"
    )


def _table(rows: Sequence[Sequence[str]], numbers: Sequence[int]) -> Iterator[str]:
    """Yield the lines of a table, with the columns of `numbers` aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, widths, strict=True)
        aligned = [f"{cell:>{w}}" if at in numbers else f"{cell:<{w}}" for at, (cell, w) in enumerate(cells)]
        yield "  ".join(aligned).rstrip()
