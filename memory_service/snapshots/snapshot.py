"""Reading snapshots: directories of generations, each a manifest of checksummed blocks in Arrow IPC files.

Generations share the files of unchanged blocks, and no file is ever modified. A snapshot opens as its newest intact
generation, and the damage of newer ones is reported. The URI DIR?generation=3 selects one generation.
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
"""Result of reading each block, by its entry and `row_bytes`: a sentence about its damage, or None if it is intact."""

_log = logging.getLogger(__name__)
_Loaded = TypeVar("_Loaded")


class Snapshot:
    """One generation opened for reading. Every block is verified against its checksum when it is read."""

    def __init__(self, store: Store, generation: int, tables: Mapping[str, TableEntry]) -> None:
        self._store = store
        self.generation = generation
        self.tables = tables
        self.damage: tuple[str, ...] = ()
        """Damage of the newer generations that were passed over, a sentence each."""

    @classmethod
    def open(cls, uri: str | Path) -> Snapshot:
        """Open the generation that the URI names, or else the newest with an intact manifest and complete files.

        No block is read, so a flipped bit inside a block is found only when that block is read.

        Raises:
            SnapshotError: no generation can be used; the message names everything that is missing or damaged.
        """
        directory, generation = split_pin(uri)
        store = open_store(directory)
        if generation is not None:
            return cls._only(store, generation)
        return cls._newest(store, deep=False)

    @classmethod
    def last_good(cls, uri: str | Path) -> Snapshot:
        """Open the newest generation of which every block is intact, by reading all of them.

        This is for when a block of the generation that `open` found turns out damaged. If several shards load the same
        snapshot, one process must call this and all must load the `uri` of the result.

        Raises:
            SnapshotError: no generation is intact; the message names all damage.
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
        """URI that opens exactly this generation, so that all shards of a memory load the same rows."""
        return pin(self._store.uri, self.generation)

    @property
    def specs(self) -> dict[str, TableSpec]:
        """Specs of the tables by name."""
        return {name: table.spec for name, table in self.tables.items()}

    def table(self, table: str) -> TableEntry:
        """Entry of one table.

        Raises:
            UnknownTable: the snapshot has no table of that name.
        """
        if table not in self.tables:
            raise UnknownTable(f"snapshot {self._store.uri} has no table {table!r}, only {sorted(self.tables)}")
        return self.tables[table]

    def read_blocks(self, table: str, block_ids: Iterable[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Read blocks of a table and verify their checksums, file by file.

        Yields:
            Block number and packed rows, uint8 [n, row_bytes], which are valid until the next block is requested.

        Raises:
            UnknownTable: the snapshot has no table of that name.
            SnapshotError: a block is missing, truncated or altered; the message names file, table and block.
        """
        entry = self.table(table)
        by_file: dict[str, list[int]] = {}
        for block in block_ids:
            by_file.setdefault(entry.blocks[block].file, []).append(block)
        for file in sorted(by_file):
            yield from self._read_file(entry, file, by_file[file])

    def missing_files(self) -> list[str]:
        """Check the existence and size of every file; a sentence for each that is missing or has the wrong size."""
        found = []
        for name, table in self.tables.items():
            stored = self._store.files(name)
            for file in table.files:
                if what := _damage_of_file(stored.get(file), table.file_bytes.get(file), table.needed_bytes[file]):
                    found.append(self._about(f"file {file} of table {name!r} {what}"))
        return found

    def damaged_blocks(self, checked: Checked) -> list[str]:
        """Read the blocks whose result is not in `checked` yet, and add it; a sentence for each damaged block."""
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
        except SnapshotError:  # a block is damaged: read the remaining ones one at a time, to name each damaged one
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
    """Load a snapshot, falling back to its last good generation if a block turns out damaged.

    If several shards load the same snapshot, only the process that decides for all of them may call this, because they
    could fall back to different generations.

    Args:
        uri: URI of the snapshot. There is no fallback if it names a generation.
        load: loads a generation; called again from the start for the fallback.

    Returns:
        The result of `load`.

    Raises:
        SnapshotError: no generation can be loaded.
    """
    snapshot = Snapshot.open(uri)
    try:
        return load(snapshot)
    except SnapshotError as error:
        if split_pin(uri)[1] is not None:
            raise
        _log.warning("generation %d is passed over: %s", snapshot.generation, error)
    return load(Snapshot.last_good(uri))


def newest_version(uri: str | Path) -> int:
    """Highest version of a table in any generation of a snapshot's directory that can be read; 0 if there is none.

    Rows that go back to an older generation and then change have to get a higher version: there may be clients that
    have cached, and generations that hold, other rows under those between.
    """
    store = open_store(split_pin(uri)[0])
    found = (inspect(store, number)[0] for number in generations(store))
    return max((entry.version for snapshot in found if snapshot for entry in snapshot.tables.values()), default=0)


def generations(store: Store) -> list[int]:
    """Numbers of the generations that have a manifest, damaged ones included, in ascending order."""
    return sorted(number for name in store.files() if (number := generation_of_manifest(name)) is not None)


def inspect(store: Store, generation: int, checked: Checked | None = None) -> tuple[Snapshot | None, list[str]]:
    """Open a generation and look for damage.

    Args:
        store: directory of the snapshot.
        generation: number of the generation.
        checked: results of blocks read so far, to which others are added. If None, no block is read, and only the
            existence and size of the files are checked.

    Returns:
        The generation, None if its manifest cannot be used, and a sentence for each damage.
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
    """Damage of a file that shows in a folder listing, as the end of a sentence; "" if there is none."""
    if stored is None:
        return "is missing"
    if not stored.regular:
        return "is not a regular file"
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
