"""Snapshots: a directory of generations, each a manifest over blocks in Arrow IPC files, every block with a checksum.

Generations share the files of blocks that did not change, and no file is ever written twice. The newest generation
that is whole is the one that loads; what is wrong with a newer one is named. DIR?generation=3 means that one only.
Block files are uncompressed, one record batch a block, several blocks a file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from memory_service.errors import SnapshotError, UnknownTable
from memory_service.snapshots.block_file import BlockFile
from memory_service.snapshots.manifest import MAX_BYTES, BlockEntry, TableEntry, damaged_manifest, parse_manifest
from memory_service.snapshots.names import generation_of_manifest, manifest_name, pin, split_pin
from memory_service.snapshots.store import Store, StoredFile, open_store
from memory_service.tables.spec import TableSpec

Checked = dict[tuple[BlockEntry, int], str | None]
"""What is wrong with each block that was read, None if nothing, by its entry and the bytes of a row."""

_log = logging.getLogger(__name__)
_Loaded = TypeVar("_Loaded")


class Snapshot:
    """One generation opened for reading; every block is checked against its checksum as it is read."""

    def __init__(self, store: Store, generation: int, tables: Mapping[str, TableEntry]) -> None:
        self._store = store
        self.generation = generation
        self.tables = tables
        self.damage: tuple[str, ...] = ()
        """What is wrong with the newer generations that were passed over, a sentence each."""

    @classmethod
    def open(cls, uri: str | Path) -> Snapshot:
        """The generation that the URI names, or the newest whose manifest is intact and whose files are all there.

        A flipped bit within a block shows only when that block is read. SnapshotError naming all that is missing or
        damaged, where no generation can be used.
        """
        directory, generation = split_pin(uri)
        store = open_store(directory)
        if generation is not None:
            return cls._only(store, generation)
        return cls._newest(store, deep=False)

    @classmethod
    def last_good(cls, uri: str | Path) -> Snapshot:
        """The newest generation of which every block was read and is whole; SnapshotError naming all damage if none.

        It reads whole generations: ask for it when a block of the one that `open` found turns out damaged. Of several
        shards one must ask, and all load the `uri` of the answer.
        """
        return cls._newest(open_store(split_pin(uri)[0]), deep=True)

    @classmethod
    def _newest(cls, store: Store, deep: bool) -> Snapshot:
        damage: list[str] = []
        checked: Checked = {}
        for generation in reversed(generations(store)):
            snapshot, found = inspect(store, generation, checked if deep else None)
            if snapshot is not None and not found:
                snapshot.damage = tuple(damage)
                return snapshot
            damage += [f"generation {generation}: {sentence}" for sentence in found]
            for sentence in found:
                _log.warning("generation %d is passed over: %s", generation, sentence)
        if not damage:
            raise SnapshotError(_no_manifest(store))
        raise SnapshotError(f"snapshot {store.uri}: no generation can be used. " + "; ".join(damage))

    @classmethod
    def _only(cls, store: Store, generation: int) -> Snapshot:
        if generation not in (known := generations(store)):
            raise SnapshotError(f"snapshot {store.uri} has no generation {generation}, only {known}")
        snapshot, damage = inspect(store, generation)
        if snapshot is None or damage:
            raise SnapshotError("; ".join(damage))
        return snapshot

    @property
    def uri(self) -> str:
        """The URI that opens this generation and no other: what the shards of one memory all load."""
        return pin(self._store.uri, self.generation)

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

    def missing_files(self) -> list[str]:
        """A sentence for each file that is not there, or cannot be what was written by its size."""
        found = []
        for name, table in self.tables.items():
            stored = self._store.files(name)
            for file in table.files:
                if what := _damage_of_file(stored.get(file), table.file_bytes.get(file), table.needed_bytes[file]):
                    found.append(self._about(f"file {file} of table {name!r} {what}"))
        return found

    def damaged_blocks(self, checked: Checked) -> list[str]:
        """Read every block that `checked` does not know yet, and put there what is wrong with it; the sentences."""
        for table in self.tables.values():
            by_file: dict[str, list[int]] = {}
            for block, entry in enumerate(table.blocks):
                if (entry, table.spec.row_bytes) not in checked:
                    by_file.setdefault(entry.file, []).append(block)
            for blocks in by_file.values():
                self._check_file(table, blocks, checked)
        found = [checked[entry, table.spec.row_bytes] for table in self.tables.values() for entry in table.blocks]
        return [sentence for sentence in found if sentence is not None]

    def _check_file(self, table: TableEntry, blocks: list[int], checked: Checked) -> None:
        row_bytes = table.spec.row_bytes
        try:
            for block, _ in self.read_blocks(table.spec.name, blocks):
                checked[table.blocks[block], row_bytes] = None
        except SnapshotError:  # one is damaged: read those left one by one, to name each
            for block in blocks:
                if (table.blocks[block], row_bytes) not in checked:
                    checked[table.blocks[block], row_bytes] = self._damage_of(table, block)

    def _damage_of(self, table: TableEntry, block: int) -> str | None:
        try:
            for _ in self.read_blocks(table.spec.name, [block]):
                pass
        except SnapshotError as error:
            return str(error)
        return None

    def _read_file(self, table: TableEntry, file: str, blocks: list[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        most = max(table.blocks[block].rows for block in blocks)
        buffer = np.empty((most, table.spec.row_bytes), np.uint8)
        with self._store.reading(file) as source:
            try:
                stored = BlockFile(source)
            except (OSError, ValueError) as error:
                raise self._damaged(table, file, blocks[0], f"the file is truncated or damaged ({error})") from error
            for block in blocks:
                rows = buffer[: table.blocks[block].rows]
                self._read_block(table, stored, block, rows)
                yield block, rows

    def _read_block(self, table: TableEntry, stored: BlockFile, block: int, rows: NDArray[np.uint8]) -> None:
        entry = table.blocks[block]
        try:
            stored.read(entry.batch, rows)
        except (OSError, ValueError) as error:
            raise self._damaged(table, entry.file, block, f"the block cannot be read ({error})") from error
        if xxhash.xxh3_128_hexdigest(rows.data) != entry.digest:
            raise self._damaged(table, entry.file, block, "the checksum does not match")

    def _damaged(self, table: TableEntry, file: str, block: int, what: str) -> SnapshotError:
        return SnapshotError(self._about(f"file {file}, table {table.spec.name!r}, block {block}: {what}"))

    def _about(self, what: str) -> str:
        return (
            f"snapshot {self._store.uri}: {what}. Restore the file from a copy, or load a generation that "
            f"`engram memory verify --snapshot {self._store.uri}` finds whole"
        )


def load_newest(uri: str | Path, load: Callable[[Snapshot], _Loaded]) -> _Loaded:
    """What `load` makes of the snapshot that `open` finds, or of the last good one where that turns out damaged.

    `load` must begin afresh each time. A URI that names a generation is loaded as it is or not at all. Of several
    shards of one memory only the one process that decides for them all may choose like this.
    """
    snapshot = Snapshot.open(uri)
    try:
        return load(snapshot)
    except SnapshotError as error:
        if split_pin(uri)[1] is not None:
            raise
        _log.warning("generation %d is passed over: %s", snapshot.generation, error)
    return load(Snapshot.last_good(uri))


def generations(store: Store) -> list[int]:
    """The generations that have a manifest, oldest first, damaged ones included."""
    return sorted(number for name in store.files() if (number := generation_of_manifest(name)) is not None)


def inspect(store: Store, generation: int, checked: Checked | None = None) -> tuple[Snapshot | None, list[str]]:
    """One generation, if its manifest can be read, and what is wrong with it, a sentence each.

    Its files are only looked for, unless `checked` is given: then its blocks are read, and `checked` remembers them
    for the generations that share them.
    """
    name = manifest_name(generation)
    try:
        with store.reading(name) as source:
            size = source.seek(0, 2)
            if size > MAX_BYTES:
                raise damaged_manifest(store.uri, name, f"it has {size} bytes, more than {MAX_BYTES}")
            source.seek(0)
            tables = parse_manifest(source.read(size), store.uri, name)
    except SnapshotError as error:
        return None, [str(error)]
    snapshot = Snapshot(store, generation, tables)
    damage = snapshot.missing_files()
    return snapshot, damage if damage or checked is None else snapshot.damaged_blocks(checked)


def _damage_of_file(stored: StoredFile | None, written_bytes: int | None, needed_bytes: int) -> str:
    """What is wrong with a file, as far as a listing shows it; empty if nothing."""
    if stored is None:
        return "is missing"
    if not stored.regular:
        return "is no regular file"
    if written_bytes is not None and stored.size != written_bytes:
        return f"has {stored.size} bytes, not {written_bytes}"
    if stored.size < needed_bytes:
        return f"has {stored.size} bytes, its blocks have {needed_bytes}"
    return ""


def _no_manifest(store: Store) -> str:
    if not store.is_directory():
        return f"no snapshot at {store.uri}: there is no such directory"
    return (
        f"no snapshot at {store.uri}: the directory has no {manifest_name(0)}, so it is not a snapshot or was never "
        "finished. Write it again"
    )
