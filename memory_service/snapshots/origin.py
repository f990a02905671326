"""Where a memory's rows come from: a generation of a snapshot or, once that is deleted, another with the same rows."""

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
    """A generation, and how to recognise its rows elsewhere."""

    uri: str
    specs: tuple[TableSpec, ...]
    content: str
    """SHA-256 over specs, versions and the checksums of all blocks."""

    @classmethod
    def of(cls, snapshot: Snapshot) -> Origin:
        """The origin of a memory that is loaded from this."""
        return cls(snapshot.uri, tuple(snapshot.specs.values()), _content(snapshot))

    def present_uri(self) -> str:
        """The URI to read the rows from now: of the newest generation that has them, if the one begun with is gone.

        Where none has them it is the URI begun with, of which whoever reads it is told what is missing.
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
