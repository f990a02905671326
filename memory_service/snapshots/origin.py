"""Origin of a memory's rows: a generation of a snapshot or, after that is deleted, another one with the same rows."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass

from memory_service.snapshots.names import split_pin
from memory_service.snapshots.snapshot import Snapshot, generations, inspect
from memory_service.snapshots.store import open_store
from memory_service.tables.spec import TableSpec, canonical_json

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """A generation, and a digest by which another generation with the same rows is recognised."""

    uri: str
    """URI of the generation."""
    specs: tuple[TableSpec, ...]
    """Specs of its tables."""
    content: str
    """SHA-256 over specs, versions and the checksums of all blocks."""

    @classmethod
    def of(cls, snapshot: Snapshot) -> Origin:
        """Origin of a memory that is loaded from this generation."""
        return cls(snapshot.uri, tuple(snapshot.specs.values()), _content(snapshot))

    def present_uri(self) -> str:
        """URI from which the rows can be read now.

        Returns:
            The original URI if its generation still exists, else that of the newest generation with the same rows. If
            there is none, the original URI, so that the reader's error names what is missing.
        """
        directory, generation = split_pin(self.uri)
        store = open_store(directory)
        numbers = generations(store)
        if generation in numbers:
            return self.uri
        for number in reversed(numbers):
            snapshot, damage = inspect(store, number)
            if snapshot is not None and not damage and _content(snapshot) == self.content:
                return snapshot.uri
        _log.warning("snapshot %s was deleted, and no generation of %s has the same rows", self.uri, numbers)
        return self.uri


def _content(snapshot: Snapshot) -> str:
    digest = hashlib.sha256()
    for name in sorted(snapshot.tables):
        table = snapshot.tables[name]
        checksums = [entry.digest for entry in table.blocks]
        digest.update(canonical_json([table.spec.to_json(), table.version, checksums]))
    return digest.hexdigest()
