"""Which files a snapshot has provably written: a name that fits is not enough to delete a file.

A manifest begins as no other file does, and a block file says in its header which path it was written as. Both hold for
files of which only a part was written; of an empty file nothing can be lost.
"""

from __future__ import annotations

from typing import BinaryIO

from memory_service.errors import SnapshotError
from memory_service.snapshots.block_file import written_as
from memory_service.snapshots.manifest import may_be_manifest
from memory_service.snapshots.names import generation_of_manifest, prefix_of_file, unsealed_manifest
from memory_service.snapshots.store import Store, StoredFile

_HEAD_BYTES = 64  # tell a manifest


def is_own(store: Store, path: str, file: StoredFile, named: bool = False) -> bool:
    """Whether a file, as a listing shows it, was written by this package as this path of the snapshot.

    Earlier releases wrote block files that do not say their path. Such a file is own only if it is `named`, by a
    manifest of the snapshot.
    """
    prefix = prefix_of_file(path)
    if not file.own or not (prefix or named or generation_of_manifest(path) is not None):
        return False
    if not file.size:
        return True
    is_manifest = generation_of_manifest(path) is not None or path == unsealed_manifest(prefix)
    try:
        with store.reading(path) as source:
            return may_be_manifest(source.read(_HEAD_BYTES)) if is_manifest else _is_own_blocks(source, path, named)
    except SnapshotError:  # it cannot be read, so nothing can be known about it
        return False


def _is_own_blocks(source: BinaryIO, path: str, named: bool) -> bool:
    written = written_as(source)
    return written == path or (named and written == "")
