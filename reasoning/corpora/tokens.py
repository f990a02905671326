"""Token shards are read: random access to sequences of a corpus, memory-mapped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from reasoning.corpora.manifest import TRAIN, Manifest, StoredFile, file_digest
from reasoning.corpora.shard_writer import DOCUMENT_SCHEMA, sequence_schema


@dataclass(frozen=True)
class Sequences:
    """Sequences of a corpus; B sequences of W tokens to predict."""

    tokens: NDArray[np.int64]
    """Token ids, [B, W + 1]: position t is given, position t + 1 is predicted."""
    documents: NDArray[np.int64]
    """Number of the document that each token belongs to, [B, W + 1].

    Look-back has to stop where the number changes; a loss must leave out tokens of PADDING, which is -1. The
    end-of-text token that begins a document belongs to it, though it is predicted from the one before.
    """


class TokenShards:
    """One side of a corpus, its sequences numbered from 0."""

    def __init__(self, directory: Path, manifest: Manifest, split: str) -> None:
        """Use `open`."""
        self._directory, self.manifest, self.split = directory, manifest, split
        self._stored = manifest.side(split)
        self._ends = np.cumsum([shard.rows for shard in self._stored.shards], dtype=np.int64)
        self._mapped: dict[int, _Shard] = {}

    @classmethod
    def open(cls, directory: Path, split: str = TRAIN) -> TokenShards:
        """Open a corpus for reading; files are mapped when they are first read.

        Args:
            directory: directory of the corpus.
            split: "train" or "held-out".

        Raises:
            ValueError: there is no corpus, or one of its files is missing or has another size than was written.
        """
        shards = cls(directory, Manifest.read(directory), split)
        for file in shards._files():
            _check_size(directory / file.name, file)
        return shards

    def __len__(self) -> int:
        """Return the number of sequences."""
        return self._stored.sequences

    @property
    def window(self) -> int:
        """Number of tokens that a sequence predicts; it holds one more."""
        return self.manifest.window

    @property
    def paths(self) -> list[Path]:
        """Arrow files with the columns `tokens` and `documents`, in the order of the sequences."""
        return [self._directory / shard.name for shard in self._stored.shards]

    @property
    def rows(self) -> list[int]:
        """Number of sequences in each of `paths`."""
        return [shard.rows for shard in self._stored.shards]

    @cached_property
    def document_bytes(self) -> NDArray[np.int64]:
        """UTF-8 bytes of the text that each document's tokens spell, [documents]."""
        return self.documents().column("text_bytes").to_numpy()

    def documents(self) -> pa.Table:
        """Read the list of documents, one row each by their numbers; `DocumentRecord` explains its columns.

        Raises:
            ValueError: the file is no list of documents.
        """
        path = self._directory / self._stored.documents.name
        return _open(path, DOCUMENT_SCHEMA).read_all()

    def read(self, indices: ArrayLike) -> Sequences:
        """Read sequences by their numbers, [B] integers in any order.

        Raises:
            IndexError: there is no such sequence.
            ValueError: a file was exchanged for another.
        """
        wanted = np.asarray(indices, np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"sequences {wanted.min()} to {wanted.max()} are asked for, the split has {len(self)}")
        both = np.empty((2, len(wanted), self.window + 1), np.int64)
        for number, places, rows in _by_part(wanted, self._ends):
            self._shard(number).read_into(both, places, rows)
        return Sequences(both[0], both[1])

    def verify(self) -> None:
        """Read all files of the split and compare them with the digests of the manifest.

        Raises:
            ValueError: a file differs from what was written.
        """
        for file in self._files():
            path = self._directory / file.name
            _check_size(path, file)
            if file_digest(path) != file.digest:
                raise ValueError(
                    f"corpus: {path} is damaged: its checksum is not the manifest's; build the corpus again"
                )

    def _files(self) -> list[StoredFile]:
        return [self.manifest.tokenizer, self._stored.documents, *self._stored.shards]

    def _shard(self, number: int) -> _Shard:
        if number not in self._mapped:
            schema = sequence_schema(self.window, self.manifest.vocab_size)
            self._mapped[number] = _Shard(self.paths[number], schema, self.rows[number])
        return self._mapped[number]


class _Shard:
    """A mapped file."""

    def __init__(self, path: Path, schema: pa.Schema, rows: int) -> None:
        reader = _open(path, schema)
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._ends = np.cumsum([batch.num_rows for batch in batches], dtype=np.int64)
        if self._ends[-1:].tolist() != [rows]:
            raise ValueError(f"corpus: {path} does not have the manifest's {rows} sequences; build the corpus again")
        self._columns = [[_matrix(batch.column(name)) for name in schema.names] for batch in batches]

    def read_into(self, both: NDArray[np.int64], places: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        """Copy rows of the file to places of [2, B, window + 1]."""
        for number, within, batch_rows in _by_part(rows, self._ends):
            for target, column in zip(both, self._columns[number], strict=True):
                target[places[within]] = column[batch_rows]


def _by_part(
    wanted: NDArray[np.int64], ends: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """Yield each part that holds wanted rows: its number, the places of these rows in `wanted`, and the rows in it.

    Args:
        wanted: row numbers over all parts, [B].
        ends: number of rows in all parts up to and including each.
    """
    parts = np.searchsorted(ends, wanted, side="right")
    for part in np.unique(parts).tolist():
        places = np.flatnonzero(parts == part)
        yield part, places, wanted[places] - (ends[part - 1] if part else 0)


def _open(path: Path, schema: pa.Schema) -> pa.RecordBatchFileReader:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"corpus: {path} cannot be read ({error}); build the corpus again") from error
    if not reader.schema.equals(schema):
        raise ValueError(f"corpus: {path} holds other columns than the manifest says; build the corpus again")
    return reader


def _matrix(column: pa.FixedSizeListArray) -> NDArray[np.generic]:
    """Return a column of lists as [rows, list size] without a copy."""
    return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), -1)


def _check_size(path: Path, file: StoredFile) -> None:
    if not path.is_file():
        raise ValueError(f"corpus: {path} is missing; copy the directory again or build the corpus again")
    if path.stat().st_size != file.bytes:
        raise ValueError(
            f"corpus: {path} has {path.stat().st_size} bytes instead of {file.bytes}; copy the directory again"
        )
