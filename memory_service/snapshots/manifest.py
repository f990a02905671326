"""The manifest of one generation: where each block is stored, sealed by a checksum.

The checksum reveals accidental damage only, since anyone who can write the file can seal it. So every value is checked
on its own before it is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import xxhash

from memory_service.errors import SnapshotError
from memory_service.snapshots.names import BLOCK_FILE, generation_of_manifest
from memory_service.tables.checks import Check, check_fields, check_keys, items, refusal, shorten, text, whole
from memory_service.tables.spec import TableSpec, canonical_json
from memory_service.tables.strict_json import parse_json

FORMAT_VERSION = 2
MAX_BYTES = 128 << 20
"""Largest manifest that is read or written: about two and a half million blocks."""
_READABLE = (1, FORMAT_VERSION)  # version 1 lists no file sizes
_SEAL = b'{"body":%b,"checksum":"%b"}\n'
_BEFORE, _AFTER = len(b'{"body":'), len(b',"checksum":""}\n') + 32  # bytes around the body
_BEGINS = b'{"body":{"tables":['
_INT64 = 2**63 - 1
_BLOCK_FIELDS: Mapping[str, Check] = {
    "file": text(BLOCK_FILE, "name an .arrow file in the folder of its table, nothing outside it"),
    "batch": whole(0, 2**31 - 1),
    "rows": whole(1, 2**32 - 1),
    "digest": text(r"[0-9a-f]{32}", "give 32 lower-case hex digits"),
}
_TABLE_FIELDS: Mapping[str, Check] = {"version": whole(0, _INT64), "files": items, "blocks": items}
_FILE_FIELDS: Mapping[str, Check] = {"file": _BLOCK_FIELDS["file"], "bytes": whole(0, _INT64)}


@dataclass(frozen=True)
class BlockEntry:
    """Where one block of a table is stored.

    Raises:
        ValueError: a field has the wrong type or is out of bounds.
    """

    file: str
    """Path of the block file below the snapshot's directory."""
    batch: int
    """Index of the block's record batch in the file."""
    rows: int
    """Number of rows in the block."""
    digest: str
    """xxh3_128 checksum of the block's bytes, 32 hex digits."""

    def __post_init__(self) -> None:
        check_fields("", vars(self), _BLOCK_FIELDS)


@dataclass(frozen=True)
class TableEntry:
    """One table of a snapshot.

    Raises:
        ValueError: the version or the blocks do not fit the table, or two blocks share a record batch.
    """

    spec: TableSpec
    version: int
    """Number of committed updates contained in the rows."""
    blocks: tuple[BlockEntry, ...]
    """Entries of all blocks, by block number."""
    file_bytes: Mapping[str, int] = field(default_factory=dict)
    """Size of each file in bytes; empty if the manifest has format version 1."""

    def __post_init__(self) -> None:
        check_fields(self._owner, {"version": self.version}, {"version": _TABLE_FIELDS["version"]})
        if len(self.blocks) != self.spec.blocks:
            raise ValueError(f"{self._owner} has {self.spec.blocks} blocks, {len(self.blocks)} are listed")
        for block, entry in enumerate(self.blocks):
            if entry.rows != self.spec.block_length(block):
                remedy = f"this block has {self.spec.block_length(block)}"
                raise refusal(f"{self._owner} block {block}", "rows", entry.rows, remedy)
        self._check_files()

    def _check_files(self) -> None:
        for file in self.files:
            if not file.startswith(f"{self.spec.name}/"):
                raise ValueError(f"{self._owner} cannot have the file {file!r}: it lies outside the table's folder")
        if same := _same_but_for_case(self.files):
            raise ValueError(f"{self._owner} has the files {same}, which some systems cannot tell apart")
        places = Counter((entry.file, entry.batch) for entry in self.blocks)
        (file, batch), blocks = max(places.items(), key=lambda item: item[1])
        if blocks > 1:
            raise ValueError(
                f"{self._owner} has {blocks} blocks in batch={batch} of {file}: each needs a batch of its own"
            )

    @property
    def _owner(self) -> str:
        return f"table {self.spec.name!r}"

    @cached_property
    def needed_bytes(self) -> Mapping[str, int]:
        """Bytes of the rows in each file, which is at least that large; in the order of the file names."""
        rows: Counter[str] = Counter()
        for entry in self.blocks:
            rows[entry.file] += entry.rows
        return {file: rows[file] * self.spec.row_bytes for file in sorted(rows)}

    @property
    def files(self) -> list[str]:
        """The block files of the table, in the order of their names."""
        return list(self.needed_bytes)


def check_names(tables: Iterable[str]) -> None:
    """Check that every table of a snapshot can have its own folder.

    Raises:
        ValueError: two names differ at most in case, or one is the name of a manifest.
    """
    names = list(tables)
    if same := _same_but_for_case(names):
        raise ValueError(
            f"the tables {same} would share a folder on systems that ignore case: give them different names"
        )
    for name in names:
        if generation_of_manifest(name) is not None:
            raise ValueError(f"table {name!r} has the name of a manifest: give it another name")


def render_manifest(tables: Sequence[TableEntry]) -> bytes:
    """Content of a manifest.

    Raises:
        SnapshotError: it would exceed MAX_BYTES.
    """
    body = {"tables": [_table_to_json(table) for table in tables], "version": FORMAT_VERSION}
    content = _sealed(canonical_json(body))
    if len(content) > MAX_BYTES:
        raise SnapshotError(f"a manifest of {len(content)} bytes exceeds {MAX_BYTES}: use a larger block_rows")
    return content


def parse_manifest(content: bytes, uri: str, name: str) -> dict[str, TableEntry]:
    """Parse and check a manifest.

    Args:
        content: bytes of the file.
        uri: URI of the snapshot, for messages.
        name: file name of the manifest, for messages.

    Returns:
        The tables by name.

    Raises:
        SnapshotError: the manifest is damaged, has another format version or contains an impossible value; the message
            names table, field, value and remedy.
    """
    try:
        body = parse_json(_unsealed(content))
        version = body["version"] if isinstance(body, dict) and "version" in body else None
        if type(version) is not int or version not in _READABLE:
            raise SnapshotError(
                f"snapshot {uri}: {name} has format version {shorten(version)}, this release reads {_READABLE[0]} to "
                f"{_READABLE[-1]}: use the release that wrote it, or write it again with this one"
            )
        listed = check_fields("manifest", check_keys("manifest", body, ("tables", "version")), {"tables": items})
        tables = [_table_from_json(values, version) for values in listed["tables"]]
        check_names(table.spec.name for table in tables)
    except ValueError as error:
        raise damaged_manifest(uri, name, str(error)) from error
    return {table.spec.name: table for table in tables}


def damaged_manifest(uri: str, name: str, what: str) -> SnapshotError:
    """Error for a manifest that cannot be used because of `what`."""
    return SnapshotError(f"snapshot {uri}: {name} is damaged, {what}. Restore it from a copy")


def may_be_manifest(head: bytes) -> bool:
    """Whether a file with this beginning can be a manifest that this package wrote, or the first part of one."""
    return head[: len(_BEGINS)] == _BEGINS[: len(head)]


def _sealed(body: bytes) -> bytes:
    return _SEAL % (body, xxhash.xxh3_128_hexdigest(body).encode())


def _unsealed(content: bytes) -> bytes:
    """The body of a manifest, before it is parsed; ValueError if its checksum does not match."""
    body = content[_BEFORE:-_AFTER]
    if _sealed(body) != content:
        raise ValueError("its checksum does not match")
    return body


def _same_but_for_case(names: Iterable[str]) -> list[str]:
    """The first group of names that are equal if case is ignored; empty if there is none."""
    by_name: dict[str, list[str]] = {}
    for name in names:
        by_name.setdefault(name.casefold(), []).append(name)
    return next((same for same in by_name.values() if len(same) > 1), [])


def _table_to_json(table: TableEntry) -> dict[str, Any]:
    index = {file: position for position, file in enumerate(table.files)}
    blocks = [[index[entry.file], entry.batch, entry.rows, entry.digest] for entry in table.blocks]
    files = [[file, table.file_bytes[file]] for file in table.files]
    return {"spec": table.spec.to_json(), "version": table.version, "files": files, "blocks": blocks}


def _table_from_json(values: Any, version: int) -> TableEntry:
    values = check_keys("table entry", values, ("spec", *_TABLE_FIELDS))
    spec = TableSpec.from_json(values["spec"])
    owner = f"table {spec.name!r}"
    checked = check_fields(owner, values, _TABLE_FIELDS)
    file_bytes = _files_from_json(owner, checked["files"], sized=version > 1)
    files = list(file_bytes)
    blocks = tuple(_block_from_json(owner, block, files, item) for block, item in enumerate(checked["blocks"]))
    return TableEntry(spec, checked["version"], blocks, file_bytes if version > 1 else {})


def _files_from_json(owner: str, listed: list[Any], sized: bool) -> dict[str, int]:
    """Size of each listed file; 0 if the format does not list sizes."""
    file_bytes: dict[str, int] = {}
    for number, item in enumerate(listed):
        file, size = _parts(f"{owner} file {number}", item if sized else [item, 0], _FILE_FIELDS)
        check_fields(f"{owner} file {number}", {"file": file, "bytes": size}, _FILE_FIELDS)
        if file in file_bytes:
            raise refusal(f"{owner} file {number}", "file", file, "it is listed twice")
        file_bytes[file] = size
    return file_bytes


def _block_from_json(owner: str, block: int, files: Sequence[str], item: Any) -> BlockEntry:
    index, batch, rows, digest = _parts(f"{owner} block {block}", item, _BLOCK_FIELDS)
    if type(index) is not int or not 0 <= index < len(files):
        raise refusal(f"{owner} block {block}", "file", index, f"use an index, from 0, into the {len(files)} files")
    try:
        return BlockEntry(files[index], batch, rows, digest)
    except ValueError as error:
        raise ValueError(f"{owner} block {block}: {error}") from None


def _parts(owner: str, item: Any, fields: Collection[str]) -> list[Any]:
    if not isinstance(item, list) or len(item) != len(fields):
        raise ValueError(f"{owner} is {shorten(item)}: give [{', '.join(fields)}]")
    return item
