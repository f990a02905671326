"""Token shards are written: documents end to end, cut into sequences, as uncompressed Arrow IPC files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reasoning.corpora.manifest import SplitManifest, StoredFile
from reasoning.corpora.packing import Document, DocumentRecord

PADDING = -1
"""Document number of tokens that only fill the last sequence: a loss must leave them out."""
_BLOCK_TOKENS = 1 << 20  # of a record batch
_SMALL_VOCABULARY = 1 << 16
DOCUMENT_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("project", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("files", pa.int32(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("text_bytes", pa.int64(), nullable=False),
    ]
)
"""Schema of the list of a split's documents, in the order of their numbers; `DocumentRecord` explains the columns."""


def sequence_schema(window: int, vocab_size: int) -> pa.Schema:
    """Return the schema of a shard: `tokens` and `documents`, lists of window + 1 numbers each.

    Tokens are uint16 if the vocabulary allows, else int32; document numbers are int32.
    """
    kinds = {"tokens": pa.uint16() if vocab_size <= _SMALL_VOCABULARY else pa.int32(), "documents": pa.int32()}
    lists = {name: pa.list_(pa.field("item", kind, nullable=False), window + 1) for name, kind in kinds.items()}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in lists.items()])


def cut_sequences(
    documents: Iterable[NDArray[np.int32]], window: int, pad: int | None, block_tokens: int = _BLOCK_TOKENS
) -> Iterator[NDArray[np.int32]]:
    """Lay documents end to end and cut them into sequences.

    Sequence i holds the tokens i * window to (i + 1) * window of the whole, both included. So neighbours share a token,
    and each token but the very first is predicted exactly once.

    Args:
        documents: token ids of each document, [n].
        window: number of tokens that a sequence predicts.
        pad: token that fills the last sequence; None to leave out what does not fill it.
        block_tokens: number of tokens to cut at once, about.

    Yields:
        Some sequences, [2, sequences, window + 1]: their token ids, and the number of the document that each token
        belongs to, PADDING for those that fill the last sequence.
    """
    stream = np.empty((2, 0), np.int32)
    pieces, waiting = [stream], 0
    for number, tokens in enumerate(documents):
        pieces.append(np.stack([tokens, np.full_like(tokens, number)]))
        waiting += len(tokens)
        if waiting > block_tokens + window:
            stream = np.concatenate(pieces, axis=1)
            yield _windows(stream, window)
            rest = stream[:, (waiting - 1) // window * window :]
            pieces, waiting = [rest], rest.shape[1]
    stream = np.concatenate(pieces, axis=1)
    if pad is not None and waiting > 1:
        missing = -(waiting - 1) % window
        stream = np.concatenate([stream, np.full((2, missing), [[pad], [PADDING]], np.int32)], axis=1)
    if stream.shape[1] > window:
        yield _windows(stream, window)


def _windows(stream: NDArray[np.int32], window: int) -> NDArray[np.int32]:
    return np.lib.stride_tricks.sliding_window_view(stream, window + 1, axis=1)[:, ::window]


@dataclass(frozen=True)
class ShardWriter:
    """Writes splits into a directory."""

    directory: Path
    window: int
    """Number of tokens that a sequence predicts."""
    vocab_size: int
    """One more than the highest token id."""
    shard_bytes: int
    """Size at which a shard is closed and the next begun."""

    def write(self, split: str, documents: Iterable[Document], pad: int | None) -> SplitManifest:
        """Write all documents.

        Args:
            split: name of the split, with which the names of its files begin.
            documents: documents in the order of their numbers.
            pad: token that fills the last sequence; None to leave out what does not fill it.

        Returns:
            What was written.
        """
        records: list[DocumentRecord] = []
        shards = self._write_shards(split, self._batches(_noted(documents, records), pad))
        return SplitManifest(
            shards=tuple(shards),
            documents=self._write_records(split, records),
            sequences=sum(shard.rows for shard in shards),
            tokens=sum(record.tokens for record in records),
            files=sum(record.files for record in records),
            text_bytes=sum(record.text_bytes for record in records),
            projects=tuple(sorted({record.project for record in records})),
        )

    def _batches(self, documents: Iterable[NDArray[np.int32]], pad: int | None) -> Iterator[pa.RecordBatch]:
        schema = sequence_schema(self.window, self.vocab_size)
        block_tokens = min(_BLOCK_TOKENS, self.shard_bytes // 8)
        for block in cut_sequences(documents, self.window, pad, block_tokens):
            columns = []
            for numbers, field in zip(block, schema, strict=True):
                flat = numbers.astype(field.type.value_type.to_pandas_dtype()).reshape(-1)
                columns.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), type=field.type))
            yield pa.record_batch(columns, schema=schema)

    def _write_shards(self, split: str, batches: Iterator[pa.RecordBatch]) -> list[StoredFile]:
        shards: list[StoredFile] = []
        while (first := next(batches, None)) is not None:
            path, rows = self.directory / f"{split}-{len(shards):05d}.arrow", 0
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
                for batch in chain([first], batches):
                    writer.write_batch(batch)
                    rows += batch.num_rows
                    if sink.tell() >= self.shard_bytes:
                        break
            shards.append(StoredFile.of(path, rows))
        return shards

    def _write_records(self, split: str, records: Sequence[DocumentRecord]) -> StoredFile:
        path = self.directory / f"{split}-documents.arrow"
        table = pa.Table.from_pylist([vars(record) for record in records], schema=DOCUMENT_SCHEMA)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, DOCUMENT_SCHEMA) as writer:
            writer.write_table(table)
        return StoredFile.of(path, len(records))


def _noted(documents: Iterable[Document], records: list[DocumentRecord]) -> Iterator[NDArray[np.int32]]:
    """Yield the token ids of documents while their records are collected."""
    for document in documents:
        records.append(document.record)
        yield document.ids
