"""Configuration of a corpus."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from reasoning.corpora.sources.parse import parse_source

PACKINGS = ("files", "repositories")
"""What a document is: a file, or as many files of a repository as fit into `document_tokens`."""
SPLITS = ("auto", "projects", "units")
"""What is held out as a whole: projects, or folders and files inside them."""


@dataclass(frozen=True)
class CorpusConfig:
    """What a corpus is made of, and how. Equal configurations with equal sources give equal shards.

    Raises:
        ValueError: a field is out of bounds, or a source is not written as one.
    """

    sources: tuple[str, ...] = ("stdlib",)
    """Where files come from: "stdlib", a folder, a glob of folders, "debian:NAME[=VERSION]", "pypi:NAME[==VERSION]"."""
    suffixes: tuple[str, ...] = (".py",)
    """Ends of the names of the files to take."""
    max_file_bytes: int = 1 << 20
    """Largest file to take."""
    similarity: float = 0.7
    """Files whose sets of 5-grams of words overlap this much (estimated Jaccard index) count as near duplicates.

    Below 0.7 most pairs are not found: they are too rarely compared."""
    held_out_share: float = 0.05
    """Share of the projects, or of the units inside them, that is held out of training."""
    split: str = "auto"
    """What is held out as a whole: projects, or units (folders, files) of them; auto: projects if there are ten."""
    tokenizer: Path | None = None
    """File tokenizer.json, or directory that holds one. None: a tokenizer is trained on the training files."""
    vocab_size: int = 8192
    """Number of tokens of a tokenizer that is trained."""
    window: int = 512
    """Number of tokens that a sequence predicts; it holds one more."""
    packing: str = "repositories"
    """What a document is: one of the files, or files of a repository one after the other, each below its path."""
    document_tokens: int = 32768
    """Number of tokens after which the next file of a repository begins a new document."""
    fim_rate: float = 0.5
    """Share of the training files that are rearranged for fill-in-the-middle (arXiv 2207.14255)."""
    shard_bytes: int = 256 << 20
    """Size at which a shard is closed and the next begun."""
    seed: int = 0
    """Seed of the order of documents and of fill-in-the-middle."""

    def __post_init__(self) -> None:
        self._check_sources()
        self._check_split()
        self._check_sizes()
        if self.packing not in PACKINGS:
            raise ValueError(f"packing: {self.packing!r} is unknown; use one of {', '.join(PACKINGS)}")
        if not 0 <= self.fim_rate <= 1:
            raise ValueError(f"fim_rate: {self.fim_rate} is no share of the files; use 0 to 1")

    def _check_sources(self) -> None:
        if not self.sources:
            raise ValueError("sources: none is given; name at least one, such as stdlib or a folder")
        for source in self.sources:
            parse_source(source)
            if self.sources.count(source) > 1:
                raise ValueError(f"sources: {source!r} is given twice; name each source once")
        for suffix in self.suffixes:
            if not re.fullmatch(r"\.[^/\s]+", suffix):
                raise ValueError(f"suffixes: {suffix!r} is no end of a file name; write it with its dot, such as .py")
        if not self.suffixes:
            raise ValueError("suffixes: none is given; name at least one, such as .py")

    def _check_split(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split: {self.split!r} is unknown; use one of {', '.join(SPLITS)}")
        if not 0 < self.held_out_share < 1:
            raise ValueError(f"held_out_share: {self.held_out_share} leaves one side empty; use a share such as 0.05")
        if not 0 < self.similarity <= 1:
            raise ValueError(f"similarity: {self.similarity} is no Jaccard index; use a number above 0, up to 1")

    def _check_sizes(self) -> None:
        least = {"max_file_bytes": 1, "window": 2, "document_tokens": 1, "shard_bytes": 1, "vocab_size": 300, "seed": 0}
        for field, bound in least.items():
            value = getattr(self, field)
            if value < bound:
                raise ValueError(f"{field}: {value} is too small; use at least {bound}")
