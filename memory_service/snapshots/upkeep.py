"""Upkeep of snapshots: verify all generations, and prune those that are no longer needed."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from memory_service.errors import SnapshotError
from memory_service.snapshots.names import generation_of_file, manifest_name, prefix_of_file, split_pin
from memory_service.snapshots.ownership import is_own
from memory_service.snapshots.snapshot import Checked, Snapshot, generations, inspect
from memory_service.snapshots.store import Store, open_store

_log = logging.getLogger(__name__)

UNDER_WAY_S = 3600.0
"""Age in seconds below which a file protects all files of its unsealed generation, whose writer may still be alive."""


@dataclass(frozen=True)
class GenerationReport:
    """Size and damage of one generation."""

    generation: int
    """Number of the generation."""
    new_blocks: int
    """Blocks written for this generation; its other blocks are shared with older ones."""
    new_bytes: int
    """Bytes of the rows in the new blocks."""
    blocks: int
    """All blocks of the generation."""
    bytes: int
    """Bytes of the rows in all blocks."""
    damage: tuple[str, ...]
    """A sentence for each missing or damaged file, block or manifest."""


def verify(uri: str | Path) -> list[GenerationReport]:
    """Read every block of every generation; blocks shared by several generations are read once.

    Returns:
        A report for each generation, oldest first.

    Raises:
        SnapshotError: there is no generation.
    """
    store = open_store(split_pin(uri)[0])
    numbers = generations(store)
    if not numbers:
        Snapshot.open(store.uri)  # raises an error that says what is missing
    checked: Checked = {}
    return [_report(number, *inspect(store, number, checked)) for number in numbers]


def summary(snapshot: Snapshot, damage: Iterable[str] = ()) -> GenerationReport:
    """Report on a generation from its manifest alone, with the given damage."""
    sizes = [
        (entry.rows * table.spec.row_bytes, generation_of_file(entry.file) == snapshot.generation)
        for table in snapshot.tables.values()
        for entry in table.blocks
    ]
    return GenerationReport(
        snapshot.generation,
        new_blocks=sum(new for _, new in sizes),
        new_bytes=sum(size for size, new in sizes if new),
        blocks=len(sizes),
        bytes=sum(size for size, _ in sizes),
        damage=tuple(damage),
    )


def prune(uri: str | Path, keep: int) -> list[str]:
    """Delete all generations older than the `keep` newest intact ones, and the files that only they need.

    A generation counts as intact if its manifest can be read and its files have the right sizes. Damaged generations
    newer than the oldest one kept are kept too, to be repaired from a copy. Leftovers of unfinished snapshots are
    deleted unless their writer may still be alive. Only files that this snapshot has provably written are deleted, and
    nothing behind a symbolic link. If a memory pool serves a deleted generation, another with the same rows must stay,
    for the pool to read blocks that its shards lose.

    Args:
        uri: directory or URI of the snapshot.
        keep: number of intact generations to keep, at least 1.

    Returns:
        Relative paths of the deleted files.

    Raises:
        ValueError: `keep` is less than 1.
        SnapshotError: no generation is intact, or a file cannot be deleted.
    """
    if keep < 1:
        raise ValueError(f"keep={keep} would delete the last good generation: use 1 or more")
    store = open_store(split_pin(uri)[0])
    numbers = generations(store)
    found = {number: inspect(store, number) for number in numbers}
    whole = [number for number in numbers if not found[number][1]]
    if not whole:
        raise SnapshotError(f"snapshot {store.uri}: no generation is whole, so nothing is deleted: verify it")
    oldest = whole[-keep:][0]
    root = store.files()
    old = [n for n in numbers if n < oldest and is_own(store, name := manifest_name(n), root[name])]
    kept = {n: snapshot for n, (snapshot, _) in found.items() if n >= oldest or (snapshot and n not in old)}
    named = {file for n in old if (snapshot := found[n][0]) for file in _files_of(snapshot)}
    folders = {table for snapshot, _ in found.values() if snapshot for table in snapshot.tables}
    doomed = [*map(manifest_name, old), *_unused_files(store, kept, named, folders)]
    for path in doomed:  # manifests first: if interrupted, files are left without a manifest, never the reverse
        store.delete(path)
    return doomed


def _unused_files(
    store: Store, kept: Mapping[int, Snapshot | None], named: Collection[str], folders: Iterable[str]
) -> list[str]:
    """Files of this snapshot that no kept manifest needs.

    Args:
        store: directory of the snapshot.
        kept: the generations to keep by number, None for a manifest that cannot be read but may be repaired.
        named: files that the manifests to delete name.
        folders: names of all tables.
    """
    used = {file for snapshot in kept.values() if snapshot for file in _files_of(snapshot)}
    unreadable = max((number for number, snapshot in kept.items() if snapshot is None), default=-1)
    stored = {path: file for folder in folders for path, file in store.files(folder).items() if path not in used}
    stored |= {path: file for path, file in store.files().items() if prefix_of_file(path)}
    alive = {prefix_of_file(path) for path, file in stored.items() if time.time() - file.modified < UNDER_WAY_S}

    def is_dead(path: str) -> bool:
        generation = generation_of_file(path)
        return unreadable < generation <= max(kept) or (generation > max(kept) and prefix_of_file(path) not in alive)

    def may_go(path: str) -> bool:
        own = is_own(store, path, stored[path], path in named)
        if not own and (path in named or prefix_of_file(path)):
            _log.warning(
                "snapshot %s: %s is left alone: it is a link, or does not have the content that was written",
                store.uri,
                path,
            )
        return own

    return [path for path in sorted(filter(is_dead, stored)) if may_go(path)]


def _files_of(snapshot: Snapshot) -> Iterator[str]:
    return (file for table in snapshot.tables.values() for file in table.files)


def _report(generation: int, snapshot: Snapshot | None, damage: list[str]) -> GenerationReport:
    if snapshot is None:
        return GenerationReport(generation, 0, 0, 0, 0, tuple(damage))
    return summary(snapshot, damage)
