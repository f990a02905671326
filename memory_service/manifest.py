"""The manifest of a snapshot: which block lies where, with a checksum for each block and one for the manifest."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import xxhash

from memory_service.errors import SnapshotError
from memory_service.spec import TableSpec, canonical_json

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class BlockEntry:
    """Where one block of a table is stored."""

    file: str
    """Path below the snapshot directory."""
    batch: int
    """Index of the record batch in that file."""
    rows: int
    digest: str
    """xxh3_128 of the block's bytes, 32 hex digits."""


@dataclass(frozen=True)
class TableEntry:
    """One table of a snapshot."""

    spec: TableSpec
    version: int
    """Committed updates that the rows hold."""
    blocks: tuple[BlockEntry, ...]
    """By block number, all of them."""

    def __post_init__(self) -> None:
        if len(self.blocks) != self.spec.blocks:
            raise ValueError(f"table {self.spec.name!r} has {self.spec.blocks} blocks, {len(self.blocks)} are listed")
        for block, entry in enumerate(self.blocks):
            if entry.rows != self.spec.block_length(block):
                raise ValueError(f"table {self.spec.name!r} block {block} cannot have {entry.rows} rows")
            if not entry.file.startswith(f"{self.spec.name}/") or ".." in entry.file.split("/"):
                raise ValueError(f"table {self.spec.name!r} block {block} lies outside its folder: {entry.file!r}")


def render_manifest(tables: list[TableEntry]) -> bytes:
    """The bytes of manifest.json."""
    body = {"tables": [_table_to_json(table) for table in tables], "version": FORMAT_VERSION}
    return _sealed(canonical_json(body))


def parse_manifest(content: bytes, uri: str) -> dict[str, TableEntry]:
    """The tables by name; SnapshotError for a manifest that is damaged or of another format version."""
    try:
        document = json.loads(content)
        body = document["body"]
        intact = _sealed(canonical_json(body)) == content
        version = body["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(uri, f"it cannot be read: {error}") from error
    if not intact:
        raise _damaged(uri, "its checksum does not match")
    if version != FORMAT_VERSION:
        raise SnapshotError(
            f"snapshot {uri}: {MANIFEST} has format version {version}, this release reads {FORMAT_VERSION}: "
            "write the snapshot again with this release, or use the release that wrote it"
        )
    try:
        return {table.spec.name: table for table in map(_table_from_json, body["tables"])}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise _damaged(uri, str(error)) from error


def _sealed(body: bytes) -> bytes:
    return b'{"body":%b,"checksum":"%b"}\n' % (body, xxhash.xxh3_128_hexdigest(body).encode())


def _damaged(uri: str, what: str) -> SnapshotError:
    return SnapshotError(f"snapshot {uri}: {MANIFEST} is damaged, {what}. Restore it from a copy")


def _table_to_json(table: TableEntry) -> dict[str, Any]:
    files = sorted({entry.file for entry in table.blocks})
    index = {file: position for position, file in enumerate(files)}
    blocks = [[index[entry.file], entry.batch, entry.rows, entry.digest] for entry in table.blocks]
    return {"spec": table.spec.to_json(), "version": table.version, "files": files, "blocks": blocks}


def _table_from_json(values: Mapping[str, Any]) -> TableEntry:
    files = values["files"]
    blocks = tuple(BlockEntry(files[file], batch, rows, digest) for file, batch, rows, digest in values["blocks"])
    return TableEntry(TableSpec.from_json(values["spec"]), values["version"], blocks)
