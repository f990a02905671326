"""Snapshots: every block of every table in Arrow IPC files, sealed by a manifest that is written last.

DIR/manifest.json            format version, table specs, place and checksum of every block
DIR/<table>/00000.arrow      uncompressed, one record batch a block, several blocks a file
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from memory_service.arrow_rows import row_schema, view_rows, wrap_rows
from memory_service.errors import InvalidRequest, SnapshotError, UnknownTable
from memory_service.manifest import MANIFEST, BlockEntry, TableEntry, parse_manifest, render_manifest
from memory_service.spec import TableSpec
from memory_service.store import Store

FILE_BYTES = 256 << 20

Blocks = Iterable[tuple[int, NDArray[np.uint8]]]  # (block number, packed rows)


def write_snapshot(
    uri: str | Path, tables: Mapping[TableSpec, NDArray[np.uint8] | Iterable[NDArray[np.uint8]]], version: int = 0
) -> None:
    """Write whole tables, each a packed array [rows, row_bytes] or an iterable of its blocks in order.

    An iterable is drawn one block at a time, so no table needs to be in memory. `version` counts the committed
    updates that the rows hold. SnapshotError if the directory already holds a snapshot.
    """
    store = Store(uri)
    refuse_existing(store)
    entries = []
    for spec, source in tables.items():
        blocks = write_blocks(store, spec, enumerate(_blocks_of(spec, source)))
        entries.append(TableEntry(spec, version, tuple(blocks[block] for block in range(len(blocks)))))
    seal_snapshot(store, entries)


def write_blocks(store: Store, spec: TableSpec, blocks: Blocks, prefix: str = "") -> dict[int, BlockEntry]:
    """Write some blocks of a table into files `<table>/<prefix>NNNNN.arrow`; the entries by block number."""
    per_file = max(1, FILE_BYTES // (spec.block_rows * spec.row_bytes))
    entries: dict[int, BlockEntry] = {}
    iterator = iter(blocks)
    first = next(iterator, None)
    while first is not None:
        path = f"{spec.name}/{prefix}{len(entries) // per_file:05d}.arrow"
        first = _write_file(store, spec, path, first, iterator, per_file, entries)
    return entries


def seal_snapshot(store: Store, tables: list[TableEntry]) -> None:
    """Write the manifest, which turns the block files of a directory into a snapshot."""
    store.write_whole(MANIFEST, render_manifest(tables))


def refuse_existing(store: Store) -> None:
    """SnapshotError if the directory is sealed already: its files may be in use, so nothing is overwritten."""
    if store.size(MANIFEST) is not None:
        raise SnapshotError(f"{store.uri} already holds a snapshot: choose another directory or delete that one")


class Snapshot:
    """A snapshot opened for reading; every block is checked against its checksum as it is read."""

    def __init__(self, store: Store, tables: Mapping[str, TableEntry]) -> None:
        self._store = store
        self.tables = tables

    @classmethod
    def open(cls, uri: str | Path) -> "Snapshot":
        """Read the manifest; SnapshotError naming what is missing or damaged."""
        store = Store(uri)
        if store.size(MANIFEST) is None:
            raise SnapshotError(_no_manifest(store))
        with store.reading(MANIFEST) as source:
            content = source.read()
        return cls(store, parse_manifest(content, store.uri))

    @property
    def specs(self) -> dict[str, TableSpec]:
        """The tables by name."""
        return {name: table.spec for name, table in self.tables.items()}

    def table(self, table: str) -> TableEntry:
        """One table's entry, or UnknownTable."""
        if table not in self.tables:
            raise UnknownTable(f"snapshot {self._store.uri} has no table {table!r}, only {sorted(self.tables)}")
        return self.tables[table]

    def read_blocks(self, table: str, block_ids: Iterable[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield (block number, packed rows [n, row_bytes]), file by file; a view is valid until the next is drawn.

        SnapshotError naming file, table and block for one that is missing, truncated or altered.
        """
        entry = self.table(table)
        by_file: dict[str, list[int]] = {}
        for block in block_ids:
            by_file.setdefault(entry.blocks[block].file, []).append(block)
        for file in sorted(by_file):
            yield from self._read_file(entry, file, by_file[file])

    def _read_file(self, table: TableEntry, file: str, blocks: list[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        with self._store.reading(file) as source:
            try:
                reader = pa.ipc.open_file(source)
            except (OSError, pa.ArrowException) as error:
                raise self._damaged(table, file, blocks[0], f"the file is truncated or damaged ({error})") from error
            for block in blocks:
                yield block, self._checked(table, reader, block)

    def _checked(self, table: TableEntry, reader: pa.ipc.RecordBatchFileReader, block: int) -> NDArray[np.uint8]:
        entry = table.blocks[block]
        try:
            rows = view_rows(reader.get_batch(entry.batch), table.spec.row_bytes)
        except (OSError, ValueError, IndexError, pa.ArrowException, InvalidRequest) as error:
            raise self._damaged(table, entry.file, block, f"the block cannot be read ({error})") from error
        if len(rows) != entry.rows or xxhash.xxh3_128_hexdigest(rows.data) != entry.digest:
            raise self._damaged(table, entry.file, block, "the checksum does not match")
        return rows

    def _damaged(self, table: TableEntry, file: str, block: int, what: str) -> SnapshotError:
        return SnapshotError(
            f"snapshot {self._store.uri}: file {file}, table {table.spec.name!r}, block {block}: {what}. "
            "Restore the file from a copy of the snapshot"
        )


def _no_manifest(store: Store) -> str:
    if not store.is_directory():
        return f"no snapshot at {store.uri}: there is no such directory"
    return (
        f"no snapshot at {store.uri}: the directory has no {MANIFEST}, so it is not a snapshot or was never finished. "
        "Write it again"
    )


def _blocks_of(spec: TableSpec, source: NDArray[np.uint8] | Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    if isinstance(source, np.ndarray):
        source = [source[start : start + spec.block_rows] for start in range(0, len(source), spec.block_rows)]
    count = 0
    for count, rows in enumerate(source, start=1):
        expected = (spec.block_length(count - 1), spec.row_bytes)
        if rows.dtype != np.uint8 or rows.shape != expected:
            raise ValueError(
                f"table {spec.name!r} block {count - 1}: expected uint8 {list(expected)}, "
                f"got {rows.dtype} {list(rows.shape)}"
            )
        yield rows
    if count != spec.blocks:
        raise ValueError(f"table {spec.name!r} needs {spec.blocks} blocks ({spec.rows} rows), got {count}")


def _write_file(
    store: Store,
    spec: TableSpec,
    path: str,
    first: tuple[int, NDArray[np.uint8]],
    rest: Iterator[tuple[int, NDArray[np.uint8]]],
    count: int,
    entries: dict[int, BlockEntry],
) -> tuple[int, NDArray[np.uint8]] | None:
    """Write `first` and up to count - 1 more blocks to one file; the block that starts the next one, if any."""
    schema = row_schema(spec.row_bytes)
    item: tuple[int, NDArray[np.uint8]] | None = first
    with store.writing(path) as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in range(count):
            if item is None:
                break
            block, rows = item[0], np.ascontiguousarray(item[1])
            writer.write_batch(wrap_rows(rows, schema))
            entries[block] = BlockEntry(path, batch, len(rows), xxhash.xxh3_128_hexdigest(rows.data))
            item = next(rest, None)
    return item
