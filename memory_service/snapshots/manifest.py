"""The manifest of one generation of a snapshot: where each block lies, sealed by a checksum.

Whoever can write a file can seal it too, so the seal shows damage only: every value is checked by itself before
anything is done with it.
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
"""Of a manifest: two and a half million blocks."""
_READABLE = (1, FORMAT_VERSION)  # version 1 does not list the sizes of files
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
    """Where one block of a table is stored. Raises ValueError for a field that cannot be right."""

    file: str
    """Path below the snapshot directory."""
    batch: int
    """Index of the record batch in that file."""
    rows: int
    """Rows of the block."""
    digest: str
    """xxh3_128 of the block's bytes, 32 hex digits."""

    def __post_init__(self) -> None:
        check_fields("", vars(self), _BLOCK_FIELDS)


@dataclass(frozen=True)
class TableEntry:
    """One table of a snapshot. Raises ValueError for blocks that cannot be those of the table."""

    spec: TableSpec
    version: int
    """Committed updates that the rows hold."""
    blocks: tuple[BlockEntry, ...]
    """By block number, all of them."""
    file_bytes: Mapping[str, int] = field(default_factory=dict)
    """Size of each file; empty where the manifest is of format version 1."""

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
            raise ValueError(f"{self._owner} has the files {same}, which not every system can tell apart")
        places = Counter((entry.file, entry.batch) for entry in self.blocks)
        (file, batch), blocks = max(places.items(), key=lambda item: item[1])
        if blocks > 1:
            raise ValueError(
                f"{self._owner} has {blocks} blocks in batch={batch} of {file}: each has a batch of its own"
            )

    @property
    def _owner(self) -> str:
        return f"table {self.spec.name!r}"

    @cached_property
    def needed_bytes(self) -> Mapping[str, int]:
        """By file, in order of their names: bytes of the rows in it, which are not compressed."""
        rows: Counter[str] = Counter()
        for entry in self.blocks:
            rows[entry.file] += entry.rows
        return {file: rows[file] * self.spec.row_bytes for file in sorted(rows)}

    @property
    def files(self) -> list[str]:
        """The files that hold its blocks."""
        return list(self.needed_bytes)


def check_names(tables: Iterable[str]) -> None:
    """Raise ValueError unless each table of a snapshot can have a folder of its own there."""
    names = list(tables)
    if same := _same_but_for_case(names):
        raise ValueError(
            f"the tables {same} would have one folder, at least where case is not kept: give them other names"
        )
    for name in names:
        if generation_of_manifest(name) is not None:
            raise ValueError(f"table {name!r} would have the place of a manifest: give it another name")


def render_manifest(tables: Sequence[TableEntry]) -> bytes:
    """The bytes of a manifest.

    Raises:
        SnapshotError: they are more than MAX_BYTES.
    """
    body = {"tables": [_table_to_json(table) for table in tables], "version": FORMAT_VERSION}
    content = _sealed(canonical_json(body))
    if len(content) > MAX_BYTES:
        raise SnapshotError(f"a manifest of {len(content)} bytes exceeds {MAX_BYTES}: use a larger block_rows")
    return content


def parse_manifest(content: bytes, uri: str, name: str) -> dict[str, TableEntry]:
    """The tables by name.

    Raises:
        SnapshotError: the manifest is damaged, is of another format version, or says what cannot be; the message names
            the table, the field and its value.
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
    """The error for a manifest that cannot be used."""
    return SnapshotError(f"snapshot {uri}: {name} is damaged, {what}. Restore it from a copy")


def may_be_manifest(head: bytes) -> bool:
    """Whether a file that begins like this can be a manifest, or a part of one, that this package wrote."""
    return head[: len(_BEGINS)] == _BEGINS[: len(head)]


def _sealed(body: bytes) -> bytes:
    return _SEAL % (body, xxhash.xxh3_128_hexdigest(body).encode())


def _unsealed(content: bytes) -> bytes:
    """The body of a manifest, of which nothing is parsed before its checksum matches."""
    body = content[_BEFORE:-_AFTER]
    if _sealed(body) != content:
        raise ValueError("its checksum does not match")
    return body


def _same_but_for_case(names: Iterable[str]) -> list[str]:
    """Names, if any, that are one name where upper and lower case are not told apart."""
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
    """Size by file, 0 where the format does not list it."""
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
        raise refusal(f"{owner} block {block}", "file", index, f"use the place, from 0, of one of {len(files)} files")
    try:
        return BlockEntry(files[index], batch, rows, digest)
    except ValueError as error:
        raise ValueError(f"{owner} block {block}: {error}") from None


def _parts(owner: str, item: Any, fields: Collection[str]) -> list[Any]:
    if not isinstance(item, list) or len(item) != len(fields):
        raise ValueError(f"{owner} is {shorten(item)}: give [{', '.join(fields)}]")
    return item
