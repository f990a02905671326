"""The manifest of a corpus, corpus.json: configuration, files with their digests, and what was kept and dropped.

Its fingerprint covers all of that, so that a training run that is resumed knows its corpus again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from memory_service.tables.spec import canonical_json
from memory_service.tables.strict_json import parse_json

MANIFEST_FILE = "corpus.json"
FORMAT = "engram-corpus"
VERSION = 1
TRAIN, HELD_OUT = "train", "held-out"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class StoredFile:
    """A file of the corpus."""

    name: str
    rows: int
    """Number of sequences in a shard, of documents in a list of documents, of tokens in a tokenizer."""
    bytes: int
    digest: str
    """xxh3_128 of its bytes, 32 hex digits."""

    @classmethod
    def of(cls, path: Path, rows: int) -> StoredFile:
        """Describe a file that was written."""
        return cls(path.name, rows, path.stat().st_size, file_digest(path))


@dataclass(frozen=True)
class SplitManifest:
    """One side of the split."""

    shards: tuple[StoredFile, ...]
    """Files of sequences, in their order."""
    documents: StoredFile
    """File that lists the documents by their numbers."""
    sequences: int
    tokens: int
    """Tokens of all documents, padding not included."""
    files: int
    text_bytes: int
    """UTF-8 bytes that the tokens spell, path headers included."""
    projects: tuple[str, ...]
    """Names of the projects that the files come from."""


@dataclass(frozen=True)
class SourceReport:
    """What became of the files of a source."""

    source: str
    """Source as the user wrote it."""
    version: str | None
    """Version of a package; None for folders."""
    kept: int
    kept_bytes: int
    dropped: Mapping[str, int]
    """Number of files that were left out, by reason."""


@dataclass(frozen=True)
class Manifest:
    """A corpus."""

    config: Mapping[str, Any]
    """Configuration that it was built with."""
    config_fingerprint: str
    """Equal for equal configurations, the content of the tokenizer's file included."""
    split: str
    """What was held out as a whole: "projects" or "units"."""
    window: int
    """Number of tokens that a sequence predicts; it holds one more."""
    vocab_size: int
    """One more than the highest token id."""
    tokenizer: StoredFile
    sources: tuple[SourceReport, ...]
    train: SplitManifest
    held_out: SplitManifest

    @property
    def fingerprint(self) -> str:
        """xxh3_128 of all values, 32 hex digits."""
        return xxhash.xxh3_128_hexdigest(canonical_json(dataclasses.asdict(self)))

    def side(self, split: str) -> SplitManifest:
        """Return a side of the split by its name, "train" or "held-out".

        Raises:
            ValueError: there is no such side.
        """
        if split not in (TRAIN, HELD_OUT):
            raise ValueError(f"split: {split!r} is unknown; use {TRAIN} or {HELD_OUT}")
        return self.train if split == TRAIN else self.held_out

    def write(self, directory: Path) -> None:
        """Write corpus.json, which appears whole or not at all."""
        head = {"format": FORMAT, "version": VERSION, "fingerprint": self.fingerprint}
        unfinished = directory / f".{MANIFEST_FILE}"
        unfinished.write_bytes(canonical_json({**head, "corpus": dataclasses.asdict(self)}) + b"\n")
        unfinished.rename(directory / MANIFEST_FILE)

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Read corpus.json.

        Raises:
            ValueError: there is none, or it is damaged or of another version.
        """
        path = directory / MANIFEST_FILE
        if not path.is_file():
            raise ValueError(f"corpus: {directory} holds no {MANIFEST_FILE}; build a corpus there with `engram corpus`")
        try:
            stored = parse_json(path.read_bytes())
            if (stored["format"], stored["version"]) != (FORMAT, VERSION):
                raise ValueError(f"format {stored['format']} version {stored['version']} is not {FORMAT} {VERSION}")
            manifest = _manifest(stored["corpus"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"corpus: {path} cannot be read ({error}); build the corpus again") from error
        if manifest.fingerprint != stored["fingerprint"]:
            raise ValueError(f"corpus: {path} was changed since it was written; build the corpus again")
        return manifest


def file_digest(path: Path) -> str:
    """Return the xxh3_128 of a file's bytes, 32 hex digits."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _manifest(values: Any) -> Manifest:
    nested = {
        "tokenizer": StoredFile(**values["tokenizer"]),
        "sources": tuple(SourceReport(**report) for report in values["sources"]),
        "train": _side(values["train"]),
        "held_out": _side(values["held_out"]),
    }
    return Manifest(**{**values, **nested})


def _side(values: Any) -> SplitManifest:
    nested = {
        "shards": tuple(StoredFile(**shard) for shard in values["shards"]),
        "documents": StoredFile(**values["documents"]),
        "projects": tuple(values["projects"]),
    }
    return SplitManifest(**{**values, **nested})
