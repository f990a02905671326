"""The manifest of one generation of a snapshot: where each block lies, sealed by a checksum; and what files are called.

DIR/manifest-000003.json                    generation 3; generation 0 is DIR/manifest.json
DIR/<table>/000003-5f2c9a1e-NNNNN.arrow     written for generation 3 by attempt 5f2c9a1e, read by later ones too
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from memory_service.errors import SnapshotError
from memory_service.tables.spec import TableSpec, canonical_json

FORMAT_VERSION = 2
_READABLE = (1, FORMAT_VERSION)  # version 1 does not list the sizes of files
_MANIFEST = re.compile(r"manifest(?:-(\d{6,}))?\.json")
_FILE = re.compile(r"(\d{6,})-[0-9a-f]{8}-")
_PIN = re.compile(r"[?&]generation=(\d+)$")


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
    file_bytes: Mapping[str, int] = field(default_factory=dict)
    """Size of each file; empty where the manifest is of format version 1."""

    def __post_init__(self) -> None:
        if len(self.blocks) != self.spec.blocks:
            raise ValueError(f"table {self.spec.name!r} has {self.spec.blocks} blocks, {len(self.blocks)} are listed")
        for block, entry in enumerate(self.blocks):
            if entry.rows != self.spec.block_length(block):
                raise ValueError(f"table {self.spec.name!r} block {block} cannot have {entry.rows} rows")
            if not entry.file.startswith(f"{self.spec.name}/") or ".." in entry.file.split("/"):
                raise ValueError(f"table {self.spec.name!r} block {block} lies outside its folder: {entry.file!r}")

    @property
    def files(self) -> list[str]:
        """The files that hold its blocks."""
        return sorted({entry.file for entry in self.blocks})


def manifest_name(generation: int) -> str:
    """The file name of a generation's manifest."""
    return f"manifest-{generation:06d}.json" if generation else "manifest.json"


def generation_of_manifest(name: str) -> int | None:
    """The generation whose manifest has this file name, if it is one."""
    match = _MANIFEST.fullmatch(name)
    generation = int(match[1] or 0) if match else -1
    return generation if generation >= 0 and manifest_name(generation) == name else None


def file_prefix(generation: int, attempt: str) -> str:
    """How the names of block files begin; `attempt` is 8 hex digits, so that two writers never share a file."""
    return f"{generation:06d}-{attempt}-"


def prefix_of_file(path: str) -> str:
    """The prefix of a block file; empty for a name of generation 0 that has none."""
    match = _FILE.match(path.rpartition("/")[2])
    return match[0] if match else ""


def generation_of_file(path: str) -> int:
    """The generation for which a block file was written."""
    return int(prefix_of_file(path).partition("-")[0] or 0)


def pin(uri: str | Path, generation: int) -> str:
    """The URI of one generation: DIR?generation=3, or with & where the URI has options already."""
    return f"{uri}{'&' if '?' in str(uri) else '?'}generation={generation}"


def split_pin(uri: str | Path) -> tuple[str, int | None]:
    """The directory of a URI and the generation that it names, if any."""
    text = str(uri)
    match = _PIN.search(text)
    return (text[: match.start()], int(match[1])) if match else (text, None)


def render_manifest(tables: Sequence[TableEntry]) -> bytes:
    """The bytes of a manifest."""
    body = {"tables": [_table_to_json(table) for table in tables], "version": FORMAT_VERSION}
    return _sealed(canonical_json(body))


def parse_manifest(content: bytes, uri: str, name: str) -> dict[str, TableEntry]:
    """The tables by name; SnapshotError for a manifest that is damaged or of another format version."""
    try:
        document = json.loads(content)
        body = document["body"]
        intact = _sealed(canonical_json(body)) == content
        version = body["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(uri, name, f"it cannot be read: {error}") from error
    if not intact:
        raise _damaged(uri, name, "its checksum does not match")
    if version not in _READABLE:
        raise SnapshotError(
            f"snapshot {uri}: {name} has format version {version}, this release reads "
            f"{_READABLE[0]} to {_READABLE[-1]}: use the release that wrote it, or write it again with this one"
        )
    try:
        return {table.spec.name: table for table in (_table_from_json(values, version) for values in body["tables"])}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise _damaged(uri, name, str(error)) from error


def _sealed(body: bytes) -> bytes:
    return b'{"body":%b,"checksum":"%b"}\n' % (body, xxhash.xxh3_128_hexdigest(body).encode())


def _damaged(uri: str, name: str, what: str) -> SnapshotError:
    return SnapshotError(f"snapshot {uri}: {name} is damaged, {what}. Restore it from a copy")


def _table_to_json(table: TableEntry) -> dict[str, Any]:
    index = {file: position for position, file in enumerate(table.files)}
    blocks = [[index[entry.file], entry.batch, entry.rows, entry.digest] for entry in table.blocks]
    files = [[file, table.file_bytes[file]] for file in table.files]
    return {"spec": table.spec.to_json(), "version": table.version, "files": files, "blocks": blocks}


def _table_from_json(values: Mapping[str, Any], version: int) -> TableEntry:
    file_bytes = dict(values["files"]) if version > 1 else {}
    files = list(file_bytes) if version > 1 else values["files"]
    blocks = tuple(BlockEntry(files[file], batch, rows, digest) for file, batch, rows, digest in values["blocks"])
    return TableEntry(TableSpec.from_json(values["spec"]), values["version"], blocks, file_bytes)
