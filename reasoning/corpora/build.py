"""A corpus is built: sources are read, cleaned, split, freed of duplicates, tokenized, packed and stored."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import xxhash
from tqdm import tqdm

from memory_service.tables.spec import canonical_json
from reasoning.corpora.bpe import Marks, train_bpe
from reasoning.corpora.cleaning import Cleaner, label
from reasoning.corpora.config import CorpusConfig
from reasoning.corpora.duplicates import TextFingerprint, find_duplicates
from reasoning.corpora.manifest import HELD_OUT, MANIFEST_FILE, TRAIN, Manifest, SourceReport, StoredFile, file_digest
from reasoning.corpora.packing import Document, Packer
from reasoning.corpora.shard_writer import ShardWriter
from reasoning.corpora.sources.download_cache import default_cache
from reasoning.corpora.sources.open_source import open_source
from reasoning.corpora.split import resolve_split, split_files
from reasoning.corpora.spool import SourceFile, TextSpool
from reasoning.text.tokenizer import TOKENIZER_FILE, Tokenizer

_TOKENIZER_BYTES = 1 << 30  # of text are enough to train a tokenizer on


def find_corpus(config: CorpusConfig, output: Path) -> Manifest | None:
    """Return the manifest of the corpus in `output` if it was built with this configuration; None if nothing is there.

    Folders are not compared with what they were then: delete the corpus to take up changes.

    Raises:
        ValueError: something else is there.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if not (output / MANIFEST_FILE).is_file():
        raise ValueError(f"output: {output} holds something other than a corpus; name a directory that does not exist")
    manifest = Manifest.read(output)
    if manifest.config_fingerprint != _fingerprint(config):
        raise ValueError(
            f"output: {output} holds a corpus of another configuration; delete it or name another directory"
        )
    return manifest


def build_corpus(config: CorpusConfig, output: Path, cache: Path | None = None, progress: bool = False) -> Manifest:
    """Build a corpus in a hidden directory beside `output` that takes its name when all is done.

    A corpus of the same configuration that is there already is returned as it is.

    Args:
        config: what to build.
        output: directory to make.
        cache: folder of downloads; None for the one below ~/.cache.
        progress: show progress bars on standard error.

    Returns:
        The manifest, which `output` holds as corpus.json.

    Raises:
        ValueError: `output` holds something else, a source is missing, or too few files are left.
    """
    if (manifest := find_corpus(config, output)) is not None:
        return manifest
    with _building(output) as directory:
        return _build(config, directory, cache or default_cache(), progress)


@contextmanager
def _building(output: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `output` if the block succeeds; what a killed build left is deleted."""
    output = output.resolve()
    directory = output.with_name(f".{output.name}.building")
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory, output):
        try:
            _clear(directory)
            yield directory
            directory.rename(output)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise


@contextmanager
def _locked(directory: Path, output: Path) -> Iterator[None]:
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ValueError(f"output: another process is building {output}; wait for it or name another one") from error
    finally:
        os.close(handle)


def _clear(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()


def _build(config: CorpusConfig, directory: Path, cache: Path, progress: bool) -> Manifest:
    packer = None if config.tokenizer is None else _packer(config, Tokenizer.from_file(config.tokenizer))
    spool = TextSpool(directory / ".texts")
    collected = _collect(config, cache, spool, progress)
    sides = _divide(config, collected)
    packer = packer or _packer(config, _trained_tokenizer(config, sides.train, spool))
    manifest = _store(config, directory, collected, sides, packer, spool, progress)
    spool.delete()
    manifest.write(directory)
    return manifest


def _packer(config: CorpusConfig, tokenizer: Tokenizer) -> Packer:
    return Packer(
        tokenizer.backend,
        Marks.find(tokenizer.backend),
        repositories=config.packing == "repositories",
        document_tokens=config.document_tokens,
        fim_rate=config.fim_rate,
        seed=config.seed,
    )


@dataclass
class _Collected:
    """Files that passed cleaning, and why others did not."""

    files: list[SourceFile] = field(default_factory=list)
    fingerprints: list[TextFingerprint] = field(default_factory=list)
    versions: dict[str, str | None] = field(default_factory=dict)
    """Version of each source."""
    dropped: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Reasons by source."""


def _collect(config: CorpusConfig, cache: Path, spool: TextSpool, progress: bool) -> _Collected:
    """Read all sources and clean their files one by one."""
    found, cleaner = _Collected(), Cleaner(config.suffixes, config.max_file_bytes)
    for source in config.sources:
        found.versions[source], entries = open_source(source, cache)
        for entry in tqdm(entries, desc=source, unit=" files", disable=not progress):
            text, reason = cleaner.text_of(entry)
            if reason:
                found.dropped[source][reason] += 1
            else:
                found.files.append(spool.add(source, label(entry.project), label(entry.path), text))
                found.fingerprints.append(TextFingerprint.of(text))
    if not found.files:
        reasons = sum(found.dropped.values(), Counter()) or {"nothing": 0}
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        raise ValueError(f"sources: no file is usable (left out: {counts}); check `sources` and `suffixes`")
    return found


@dataclass(frozen=True)
class _Sides:
    """The split."""

    split: str
    train: list[SourceFile]
    held_out: list[SourceFile]


def _divide(config: CorpusConfig, found: _Collected) -> _Sides:
    """Split the files, and drop duplicates: of a held-out and a training file that are alike, the latter."""
    split = resolve_split(found.files, config.split)
    held = split_files(found.files, config.held_out_share, split)
    order = sorted(range(len(held)), key=lambda index: not held[index])
    repeated = find_duplicates(found.fingerprints, order, config.similarity)
    for index, (earlier, reason) in repeated.items():
        across = held[earlier] and not held[index]
        found.dropped[found.files[index].source]["like a held-out file" if across else reason] += 1
    left = [index for index in range(len(held)) if index not in repeated]
    train = [found.files[index] for index in left if not held[index]]
    if not train:
        raise ValueError("sources: every file is like a held-out one, none is left for training; give more projects")
    return _Sides(split, train, [found.files[index] for index in left if held[index]])


def _trained_tokenizer(config: CorpusConfig, files: Sequence[SourceFile], spool: TextSpool) -> Tokenizer:
    """Train a tokenizer on training files: all, or so many from all projects alike as are enough."""
    shuffled = sorted(files, key=lambda file: xxhash.xxh3_64_intdigest(file.key.encode()))
    ends = accumulate(file.size for file in shuffled)
    chosen = [file for file, end in zip(shuffled, ends, strict=True) if end <= max(_TOKENIZER_BYTES, shuffled[0].size)]
    return Tokenizer(train_bpe(spool.texts(chosen), config.vocab_size))


def _store(
    config: CorpusConfig,
    directory: Path,
    found: _Collected,
    sides: _Sides,
    packer: Packer,
    spool: TextSpool,
    progress: bool,
) -> Manifest:
    """Write tokenizer and shards."""
    vocab_size = Tokenizer(packer.tokenizer).vocab_size
    packer.tokenizer.save(str(directory / TOKENIZER_FILE))
    writer = ShardWriter(directory, config.window, vocab_size, config.shard_bytes)
    held_packer = replace(packer, fim_rate=0.0)  # so that bits per byte compare with those of other models
    train = packer.documents(sides.train, spool.text)
    held_out = held_packer.documents(sides.held_out, spool.text)
    manifest = Manifest(
        config=_plain(config),
        config_fingerprint=_fingerprint(config),
        split=sides.split,
        window=config.window,
        vocab_size=vocab_size,
        tokenizer=StoredFile.of(directory / TOKENIZER_FILE, vocab_size),
        sources=tuple(_reports(found, [*sides.train, *sides.held_out])),
        train=writer.write(TRAIN, _shown(train, TRAIN, len(sides.train), progress), pad=None),
        held_out=writer.write(
            HELD_OUT, _shown(held_out, HELD_OUT, len(sides.held_out), progress), pad=packer.marks.pad
        ),
    )
    if not manifest.train.sequences:
        raise ValueError(
            f"window: {config.window} tokens and one more do not fit into the {manifest.train.tokens} tokens of the "
            "training files; use a shorter window or give more files"
        )
    return manifest


def _shown(documents: Iterable[Document], name: str, files: int, progress: bool) -> Iterator[Document]:
    """Pass documents on, with a progress bar of their files."""
    with tqdm(desc=name, total=files, unit=" files", disable=not progress) as bar:
        for document in documents:
            yield document
            bar.update(document.record.files)


def _reports(found: _Collected, files: Iterable[SourceFile]) -> Iterator[SourceReport]:
    kept: Counter[str] = Counter()
    kept_bytes: Counter[str] = Counter()
    for file in files:
        kept[file.source] += 1
        kept_bytes[file.source] += file.size
    for source, version in found.versions.items():
        yield SourceReport(source, version, kept[source], kept_bytes[source], dict(found.dropped[source]))


def _plain(config: CorpusConfig) -> dict[str, Any]:
    """Return a configuration as JSON has it."""
    lists = {"sources": list(config.sources), "suffixes": list(config.suffixes)}
    return {**asdict(config), **lists, "tokenizer": config.tokenizer and str(config.tokenizer)}


def _fingerprint(config: CorpusConfig) -> str:
    """Return a digest of the configuration, in which the content of the tokenizer counts and not its path."""
    path = config.tokenizer
    file = path / TOKENIZER_FILE if path and path.is_dir() else path
    tokenizer = file_digest(file) if file and file.is_file() else None
    return xxhash.xxh3_128_hexdigest(canonical_json({**_plain(config), "tokenizer": tokenizer}))
