"""Documents: one file each, or the files of a repository one after the other, each below its path.

A document begins with the end-of-text token. The look-back of Engram layers stops at its border, so that
the memory is never asked about n-grams that only chance has put together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as BpeTokenizer

from reasoning.corpora.bpe import Marks
from reasoning.corpora.fill_in_middle import Gap, draw_gap
from reasoning.corpora.spool import SourceFile

_FILES_AT_ONCE = 256  # tokenised in parallel
_SLASHES = (
    ".c",
    ".h",
    ".cc",
    ".cpp",
    ".hpp",
    ".cs",
    ".go",
    ".rs",
    ".js",
    ".jsx",
    ".ts",
    ".tsx",
    ".java",
    ".kt",
    ".swift",
)


@dataclass(frozen=True)
class DocumentRecord:
    """Where a document comes from, and how long it is."""

    source: str
    """Source as the user wrote it."""
    project: str
    """Name of the project."""
    path: str
    """Path of its first file."""
    files: int
    """Number of its files."""
    tokens: int
    """Number of its tokens, the end-of-text token included."""
    text_bytes: int
    """UTF-8 bytes of the text that its tokens spell, path headers included: what bits per byte are counted by."""


@dataclass(frozen=True)
class Document:
    """A document, as tokens."""

    ids: NDArray[np.int32]
    """Token ids, [n]; the first is the end-of-text token."""
    record: DocumentRecord


@dataclass(frozen=True)
class Packer:
    """Turns files into documents. Tokenizes in such a way that special tokens spelled out in a text stay text."""

    tokenizer: BpeTokenizer
    """Its `encode_special_tokens` is set."""
    marks: Marks
    repositories: bool
    """Whether files of a repository share documents."""
    document_tokens: int
    """Number of tokens after which the next file of a repository begins a new document."""
    fim_rate: float
    """Share of files that are rearranged for fill-in-the-middle."""
    seed: int

    def __post_init__(self) -> None:
        if self.fim_rate and not self.marks.fill_in_the_middle:
            raise ValueError(
                f"fim_rate: {self.fim_rate} needs tokens for fill-in-the-middle, which the tokenizer lacks; use 0"
            )
        self.tokenizer.encode_special_tokens = True

    def documents(self, files: Iterable[SourceFile], text: Callable[[SourceFile], str]) -> Iterator[Document]:
        """Yield the documents of some files in an order that depends on the seed.

        Files of a repository stay in the order of folders and names.

        Args:
            files: the files.
            text: returns the text of a file.
        """
        groups = sorted(self._groups(files), key=lambda group: self._place(group[0]))
        numbered = ((number, file) for number, group in enumerate(groups) for file in group)
        for _, encoded in groupby(self._encoded(numbered, text), key=lambda item: item[0]):
            yield from self._pack((file, parts) for _, file, parts in encoded)

    def _groups(self, files: Iterable[SourceFile]) -> list[list[SourceFile]]:
        if not self.repositories:
            return [[file] for file in files]
        ordered = sorted(files, key=lambda file: (*_repository(file), _by_folder(file.path)))
        return [list(group) for _, group in groupby(ordered, key=_repository)]

    def _place(self, file: SourceFile) -> bytes:
        return hashlib.sha256(f"{self.seed}\0{file.key}".encode()).digest()

    def _encoded(
        self, files: Iterator[tuple[int, SourceFile]], text: Callable[[SourceFile], str]
    ) -> Iterator[tuple[int, SourceFile, _Encoded]]:
        """Yield the files with their tokens, some hundred files at a time."""
        while batch := list(islice(files, _FILES_AT_ONCE)):
            layouts = [self._layout(file, text(file)) for _, file in batch]
            spans = [part for layout in layouts for part in layout if isinstance(part, str)]
            ids = (encoding.ids for encoding in self.tokenizer.encode_batch_fast(spans, add_special_tokens=False))
            for (number, file), layout in zip(batch, layouts, strict=True):
                parts = [[part] if isinstance(part, int) else next(ids) for part in layout]
                size = sum(len(part.encode()) for part in layout if isinstance(part, str))
                yield number, file, _Encoded(np.array(list(chain.from_iterable(parts)), np.int32), size)

    def _layout(self, file: SourceFile, text: str) -> list[int | str]:
        """Return what a file consists of: token ids, and texts to tokenize each by itself."""
        header = self._header(file.path) if self.repositories else []
        gap = draw_gap(text, f"{self.seed}\0{file.key}", self.fim_rate)
        return [*header, *([text] if gap is None else self._rearranged(gap))]

    def _header(self, path: str) -> list[int | str]:
        if self.marks.file is not None:
            return [self.marks.file, f"{path}\n"]
        return [f"{'//' if path.endswith(_SLASHES) else '#'} {path}\n"]

    def _rearranged(self, gap: Gap) -> list[int | str]:
        """Return a text with its middle last, in one of the two orders of arXiv 2207.14255 (SPM in its variant 2)."""
        prefix, suffix, middle = self.marks.prefix, self.marks.suffix, self.marks.middle
        assert prefix is not None, "the rate is 0 without these tokens"
        assert suffix is not None
        assert middle is not None
        if gap.suffix_first:
            return [prefix, suffix, gap.suffix, middle, gap.prefix, gap.middle]
        return [prefix, gap.prefix, suffix, gap.suffix, middle, gap.middle]

    def _pack(self, files: Iterable[tuple[SourceFile, _Encoded]]) -> Iterator[Document]:
        """Yield the documents of a repository: as many files as fit, and at least one."""
        waiting: list[tuple[SourceFile, _Encoded]] = []
        tokens = 0
        for file, encoded in files:
            if waiting and tokens + len(encoded.ids) > self.document_tokens:
                yield self._document(waiting)
                waiting, tokens = [], 0
            waiting.append((file, encoded))
            tokens += len(encoded.ids)
        yield self._document(waiting)

    def _document(self, files: Sequence[tuple[SourceFile, _Encoded]]) -> Document:
        ids = np.concatenate([np.array([self.marks.end], np.int32), *(encoded.ids for _, encoded in files)])
        first, size = files[0][0], sum(encoded.text_bytes for _, encoded in files)
        return Document(ids, DocumentRecord(first.source, first.project, first.path, len(files), len(ids), size))


@dataclass(frozen=True)
class _Encoded:
    """A file as tokens."""

    ids: NDArray[np.int32]
    text_bytes: int


def _repository(file: SourceFile) -> tuple[str, str]:
    return file.source, file.project


def _by_folder(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return folder, name
