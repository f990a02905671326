"""Writing snapshots: a new generation stores only the blocks whose checksums differ from the newest generation's.

Changes are not tracked, so none can be missed: every block is hashed, at memory speed, and written if its checksum
changed. A generation exists once its manifest exists, which is written last. No manifest ever names files that a failed
attempt has left behind.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, islice
from pathlib import Path
from types import TracebackType

import numpy as np
import xxhash
from numpy.typing import NDArray

from memory_service.errors import SnapshotError
from memory_service.snapshots.block_file import write_batches
from memory_service.snapshots.manifest import BlockEntry, TableEntry, check_names, render_manifest
from memory_service.snapshots.names import (
    block_path,
    file_prefix,
    generation_of_manifest,
    manifest_name,
    prefix_of_file,
    split_pin,
    unsealed_manifest,
)
from memory_service.snapshots.snapshot import Snapshot, generations
from memory_service.snapshots.store import Store, open_store
from memory_service.tables.spec import TableSpec

FILE_BYTES = 256 << 20

Source = NDArray[np.uint8] | Iterable[NDArray[np.uint8]]
"""Rows of a table: packed rows [rows, row_bytes], or an iterable of its blocks in order, to hold one at a time."""
Changed = tuple[int, NDArray[np.uint8], str]  # block number, packed rows, digest

_log = logging.getLogger(__name__)


def write_snapshot(uri: str | Path, tables: Mapping[TableSpec, Source], version: int = 0) -> Snapshot:
    """Write tables into a directory that contains no snapshot yet.

    Args:
        uri: directory or URI of the snapshot.
        tables: rows by table spec.
        version: number of committed updates contained in the rows.

    Returns:
        The new snapshot, opened.

    Raises:
        SnapshotError: the directory contains a snapshot, or cannot be written to.
        ValueError: rows do not fit their spec, or two tables cannot be stored side by side.
    """
    if generations(open_store(_directory(uri))):
        raise SnapshotError(f"{uri} already holds a snapshot: choose another directory or delete the snapshot")
    return extend_snapshot(uri, tables, version)


def extend_snapshot(
    uri: str | Path, tables: Mapping[TableSpec, Source], version: int = 0, full: bool = False
) -> Snapshot:
    """Add a generation to a snapshot, or start one; only blocks that changed are written.

    Args:
        uri: directory or URI of the snapshot, without a generation.
        tables: rows by table spec.
        version: number of committed updates contained in the rows.
        full: write unchanged blocks too, so that the generation does not depend on older files, which may be damaged.

    Returns:
        The new generation, opened.

    Raises:
        SnapshotError: the directory contains a snapshot of other tables, cannot be written to, or another writer has
            written this generation first; or rows differ from the newest generation's although the version is equal.
        ValueError: rows do not fit their spec, or two tables cannot be stored side by side.
    """
    with NewGeneration(uri, list(tables), full) as new:
        entries = []
        for spec, source in tables.items():
            blocks = write_blocks(new.store, spec, enumerate(_blocks_of(spec, source)), new.prefix, new.base(spec))
            entries.append(TableEntry(spec, version, tuple(blocks[block] for block in range(len(blocks)))))
        return new.seal(entries)


class NewGeneration:
    """A generation being written. A context manager: an exception inside it deletes the files written so far.

    Args:
        uri: directory or URI of the snapshot, without a generation.
        specs: the tables.
        full: write unchanged blocks too.

    Raises:
        SnapshotError: the directory contains a snapshot of other tables, or cannot be used.
        ValueError: two tables cannot be stored side by side.
    """

    def __init__(self, uri: str | Path, specs: Sequence[TableSpec], full: bool = False) -> None:
        check_names(spec.name for spec in specs)
        self.store = open_store(_directory(uri))
        numbers = generations(self.store)
        self.generation = numbers[-1] + 1 if numbers else 0
        if generation_of_manifest(manifest_name(self.generation)) is None:
            raise SnapshotError(
                f"snapshot {self.store.uri}: no number is left after {manifest_name(numbers[-1])}: remove that file if "
                "it is damaged, or choose another directory"
            )
        self.prefix = file_prefix(self.generation, uuid.uuid4().hex[:8])
        self._folders = [spec.name for spec in specs]
        newest = _newest(self.store) if numbers else None
        if newest:
            _check_same_memory(newest, specs)
        self._newest = newest
        self._full = full

    def base(self, spec: TableSpec) -> Mapping[int, BlockEntry]:
        """Blocks of the newest generation, by number, which need not be written again if their digest is unchanged."""
        if self._full or self._newest is None or self._newest.table(spec.name).spec != spec:
            return {}
        return dict(enumerate(self._newest.table(spec.name).blocks))

    def seal(self, tables: Sequence[TableEntry]) -> Snapshot:
        """Write the manifest, which turns the files into a generation.

        Args:
            tables: all tables of the memory, with the entries of all their blocks.

        Returns:
            The new generation, opened.

        Raises:
            SnapshotError: another writer has sealed this generation, a file has been deleted since it was written, or
                rows differ from the newest generation's although the version is equal. The rows are then not what was
                committed, and the newest generation is right.
        """
        if self._newest:
            _check_versions(self._newest, tables)
        sealed = [TableEntry(table.spec, table.version, table.blocks, self._sizes(table)) for table in tables]
        name, temporary = manifest_name(self.generation), unsealed_manifest(self.prefix)
        self.store.create_whole(name, render_manifest(sealed), temporary)
        return Snapshot(self.store, self.generation, {table.spec.name: table for table in sealed})

    def __enter__(self) -> NewGeneration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            with contextlib.suppress(SnapshotError):  # it would hide the error being raised
                self._abandon()

    def _abandon(self) -> None:
        if self.generation in generations(self.store):  # sealed, by this writer or another
            return
        for folder in self._folders:
            for path, file in self.store.files(folder).items():
                if file.own and prefix_of_file(path) == self.prefix:
                    self.store.delete(path)

    def _sizes(self, table: TableEntry) -> dict[str, int]:
        stored = self.store.files(table.spec.name)
        if gone := [file for file in table.files if file not in stored]:
            raise SnapshotError(f"snapshot {self.store.uri}: {gone[0]} was deleted meanwhile: write the snapshot again")
        return {file: stored[file].size for file in table.files}


def write_blocks(
    store: Store,
    spec: TableSpec,
    blocks: Iterable[tuple[int, NDArray[np.uint8]]],
    prefix: str,
    base: Mapping[int, BlockEntry],
) -> dict[int, BlockEntry]:
    """Write the blocks of a table that differ from `base` into files `<table>/<prefix>NNNNN.arrow`.

    Args:
        store: directory of the snapshot.
        spec: the table.
        blocks: block numbers and packed rows.
        prefix: beginning of the names of the files.
        base: entries of blocks that need not be written if their digest is unchanged.

    Returns:
        Entries of all given blocks by block number; those of unchanged blocks are the ones in `base`.

    Raises:
        InvalidRequest: the prefix would lead out of the table's folder.
        SnapshotError: a file cannot be written.
    """
    per_file = max(1, FILE_BYTES // (spec.block_rows * spec.row_bytes))
    entries: dict[int, BlockEntry] = {}
    changed = _changed(blocks, base, entries)
    for number in count():
        first = next(changed, None)
        if first is None:
            break
        path = block_path(spec.name, prefix, number)
        _write_file(store, spec, path, chain([first], islice(changed, per_file - 1)), entries)
    return entries


def _changed(
    blocks: Iterable[tuple[int, NDArray[np.uint8]]], base: Mapping[int, BlockEntry], unchanged: dict[int, BlockEntry]
) -> Iterator[Changed]:
    for block, rows in blocks:
        rows = np.ascontiguousarray(rows)
        digest = xxhash.xxh3_128_hexdigest(rows.data)
        if block in base and base[block].digest == digest:
            unchanged[block] = base[block]
        else:
            yield block, rows, digest


def _write_file(
    store: Store, spec: TableSpec, path: str, changed: Iterable[Changed], entries: dict[int, BlockEntry]
) -> None:
    def batches() -> Iterator[NDArray[np.uint8]]:
        for batch, (block, rows, digest) in enumerate(changed):
            entries[block] = BlockEntry(path, batch, len(rows), digest)
            yield rows

    with store.writing(path) as sink:
        write_batches(sink, path, spec.row_bytes, batches())


def _blocks_of(spec: TableSpec, source: Source) -> Iterator[NDArray[np.uint8]]:
    if isinstance(source, np.ndarray):
        source = [source[start : start + spec.block_rows] for start in range(0, len(source), spec.block_rows)]
    number = 0
    for number, rows in enumerate(source, start=1):
        expected = (spec.block_length(number - 1), spec.row_bytes)
        if rows.dtype != np.uint8 or rows.shape != expected:
            raise ValueError(
                f"table {spec.name!r} block {number - 1}: expected uint8 {list(expected)}, "
                f"got {rows.dtype} {list(rows.shape)}"
            )
        yield rows
    if number != spec.blocks:
        raise ValueError(f"table {spec.name!r} needs {spec.blocks} blocks ({spec.rows} rows), got {number}")


def _directory(uri: str | Path) -> str:
    directory, generation = split_pin(uri)
    if generation is not None:
        raise SnapshotError(f"{uri} names a generation: give the directory alone, the new number follows from it")
    return directory


def _newest(store: Store) -> Snapshot | None:
    try:
        return Snapshot.open(store.uri)
    except SnapshotError as error:
        _log.warning("nothing to build on, every block is written: %s", error)
        return None


def _check_same_memory(newest: Snapshot, specs: Sequence[TableSpec]) -> None:
    held = newest.specs
    names = sorted(spec.name for spec in specs)
    if names != sorted(held):
        raise SnapshotError(f"{newest.uri} holds the tables {sorted(held)}, not {names}: choose another directory")
    for spec in specs:
        if fields := held[spec.name].differing_fields(spec):
            raise SnapshotError(
                f"{newest.uri} holds another table {spec.name!r}, it differs in {', '.join(fields)}: "
                "choose another directory"
            )


def _check_versions(newest: Snapshot, tables: Sequence[TableEntry]) -> None:
    for table in tables:
        old = newest.table(table.spec.name)
        if (old.spec, old.version) != (table.spec, table.version):
            continue
        for block, (before, now) in enumerate(zip(old.blocks, table.blocks, strict=True)):
            if before.digest != now.digest:
                raise SnapshotError(
                    f"table {table.spec.name!r} block {block} differs from {newest.uri}, though both are version "
                    f"{table.version}: give changed rows a higher version, or, if none were committed, restart the "
                    "shard that holds them, whose memory must be damaged"
                )
