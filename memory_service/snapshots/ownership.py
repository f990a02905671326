"""Proof that a snapshot has written a file, without which the file is never deleted: a matching name is not enough.

Manifests have a beginning that no other file has, and block files record in their header the path they were written as.
Both can be recognised from an incomplete file. Deleting an empty file loses nothing.
"""

from __future__ import annotations

from typing import BinaryIO

from memory_service.errors import SnapshotError
from memory_service.snapshots.block_file import written_as
from memory_service.snapshots.manifest import may_be_manifest
from memory_service.snapshots.names import generation_of_manifest, prefix_of_file, unsealed_manifest
from memory_service.snapshots.store import Store, StoredFile

_HEAD_BYTES = 64  # enough to recognise a manifest


def is_own(store: Store, path: str, file: StoredFile, named: bool = False) -> bool:
    """Whether a file was provably written as part of the snapshot.

    Args:
        store: directory of the snapshot.
        path: relative path of the file.
        file: entry of the file in the folder listing.
        named: a manifest of the snapshot names the file. Earlier releases wrote block files that do not record their
            path, which are accepted only if they are named.
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
    except SnapshotError:  # unreadable, so nothing is proven
        return False


def _is_own_blocks(source: BinaryIO, path: str, named: bool) -> bool:
    written = written_as(source)
    return written == path or (named and written == "")
