"""Upkeep of snapshots: read all of them for damage, and delete what nobody needs."""

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
"""Files of a generation not sealed yet stay while any of them is younger: its writer may be alive."""


@dataclass(frozen=True)
class GenerationReport:
    """One generation as `verify` found it."""

    generation: int
    new_blocks: int
    """Blocks written for this generation; its other blocks are older ones'."""
    new_bytes: int
    """Bytes of rows in them."""
    blocks: int
    bytes: int
    damage: tuple[str, ...]
    """A sentence for each thing that is wrong."""


def verify(uri: str | Path) -> list[GenerationReport]:
    """Read every block of every generation, shared ones once; oldest first. SnapshotError if there is no generation."""
    store = open_store(split_pin(uri)[0])
    numbers = generations(store)
    if not numbers:
        Snapshot.open(store.uri)  # says what is missing
    checked: Checked = {}
    return [_report(number, *inspect(store, number, checked)) for number in numbers]


def summary(snapshot: Snapshot, damage: Iterable[str] = ()) -> GenerationReport:
    """What a generation consists of, without reading its blocks."""
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
    """Keep the `keep` newest generations that are whole and delete all older ones; the paths that were deleted.

    Goes by manifests and sizes of files. Damaged generations newer than the oldest one kept stay, to be repaired from
    a copy. What unfinished snapshots left behind goes too, unless it may belong to a writer that is still at work.
    A memory pool that serves a deleted generation needs one with the same rows among those that stay, to read from it
    what no shard holds any more.
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
    for path in doomed:  # manifests first: an interruption leaves files without a manifest, never the reverse
        store.delete(path)
    return doomed


def _unused_files(
    store: Store, kept: Mapping[int, Snapshot | None], named: Collection[str], folders: Iterable[str]
) -> list[str]:
    """Files of this snapshot that no kept manifest names or can come to name.

    `kept` has None for a manifest that cannot be read; `named` are the files of manifests that are not kept.
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
            _log.warning("snapshot %s: %s is left alone: it is a link, or not what was written there", store.uri, path)
        return own

    return [path for path in sorted(filter(is_dead, stored)) if may_go(path)]


def _files_of(snapshot: Snapshot) -> Iterator[str]:
    return (file for table in snapshot.tables.values() for file in table.files)


def _report(generation: int, snapshot: Snapshot | None, damage: list[str]) -> GenerationReport:
    if snapshot is None:
        return GenerationReport(generation, 0, 0, 0, 0, tuple(damage))
    return summary(snapshot, damage)
