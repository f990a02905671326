"""What a table is: geometry, hash, row format, and the fingerprint by which two sides know they mean the same."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_service.tables.rows import RowFormat

DEFAULT_BLOCK_ROWS = 4096
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_ROWS = 1 << 48
_NOT_FINGERPRINTED = ("name", "block_rows")  # neither changes which bytes a row id means


@dataclass(frozen=True)
class TableSpec:
    """The table of one Engram layer. Raises ValueError for a field that cannot be right."""

    name: str
    """Unique within a memory, and a folder name in snapshots, such as "engram.1"."""
    layer: int
    """Index of the model layer that reads the table, counted from 0."""
    column_rows: tuple[int, ...]
    """Rows of each column, (max_ngram - 1) * heads of them, 2-gram heads first."""
    max_ngram: int
    """Longest n-gram hashed, at least 2."""
    heads: int
    """Hash heads of each n-gram order."""
    multipliers: tuple[int, ...]
    """Hash multipliers, one for each of the max_ngram look-back positions."""
    pad_id: int
    """Compressed id that a blocked position reads as."""
    token_map_sha256: str
    """Fingerprint of the token map, 64 hex digits."""
    dim: int
    """Values in a row: one column's vector."""
    row_format: RowFormat
    """How a row is packed."""
    block_rows: int = DEFAULT_BLOCK_ROWS
    """Rows in a block, a power of two."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "column_rows", tuple(int(rows) for rows in self.column_rows))
        object.__setattr__(self, "multipliers", tuple(int(m) for m in self.multipliers))
        object.__setattr__(self, "row_format", RowFormat(self.row_format))
        self._check_geometry()
        self._check_hash()
        self.row_format.row_bytes(self.dim)

    def _check_geometry(self) -> None:
        _require(_NAME.fullmatch(self.name), self, "name", "use up to 128 letters, digits, '.', '_' or '-'")
        _require(self.layer >= 0, self, "layer", "count layers from 0")
        _require(self.max_ngram >= 2, self, "max_ngram", "use at least 2")
        _require(self.heads >= 1, self, "heads", "use at least 1")
        columns = (self.max_ngram - 1) * self.heads
        _require(len(self.column_rows) == columns, self, "column_rows", f"give (max_ngram - 1) * heads = {columns}")
        _require(min(self.column_rows) >= 1, self, "column_rows", "give every column at least one row")
        _require(sum(self.column_rows) <= _MAX_ROWS, self, "column_rows", f"keep the sum within {_MAX_ROWS}")
        power_of_two = self.block_rows > 0 and self.block_rows & (self.block_rows - 1) == 0
        _require(power_of_two, self, "block_rows", "use a power of two such as 4096")

    def _check_hash(self) -> None:
        _require(len(self.multipliers) == self.max_ngram, self, "multipliers", f"give max_ngram = {self.max_ngram}")
        in_range = all(0 < m < 1 << 63 for m in self.multipliers)
        _require(in_range, self, "multipliers", "keep each within 1 and 2**63 - 1")
        _require(self.pad_id >= 0, self, "pad_id", "use a compressed token id")
        _require(_SHA256.fullmatch(self.token_map_sha256), self, "token_map_sha256", "give 64 lower-case hex digits")

    @cached_property
    def rows(self) -> int:
        """Rows of the whole table."""
        return sum(self.column_rows)

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one packed row."""
        return self.row_format.row_bytes(self.dim)

    @property
    def block_shift(self) -> int:
        """`row >> block_shift` is the row's block."""
        return self.block_rows.bit_length() - 1

    @cached_property
    def blocks(self) -> int:
        """Blocks of the whole table; the last one may be short."""
        return -(-self.rows // self.block_rows)

    @cached_property
    def column_offsets(self) -> NDArray[np.int64]:
        """First row of each column, int64 [columns]."""
        return np.cumsum([0, *self.column_rows[:-1]], dtype=np.int64)

    def block_length(self, block: int) -> int:
        """Rows in one block: `block_rows`, or what is left for the last one."""
        return min(self.block_rows, self.rows - block * self.block_rows)

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over canonical JSON of every field except name and block_rows."""
        meaning = {key: value for key, value in self.to_json().items() if key not in _NOT_FINGERPRINTED}
        return hashlib.sha256(canonical_json(meaning)).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {**asdict(self), "row_format": self.row_format.value}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TableSpec:
        """The spec that `to_json` wrote; ValueError for missing or unknown fields."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"unknown table spec fields {unknown}: known are {sorted(known)}")
        if missing := sorted(known - values.keys()):
            raise ValueError(f"table spec lacks the fields {missing}")
        return cls(**values)

    def differing_fields(self, other: TableSpec) -> list[str]:
        """Names of the fingerprinted fields in which two specs differ."""
        names = [field.name for field in fields(self) if field.name not in _NOT_FINGERPRINTED]
        return [name for name in names if getattr(self, name) != getattr(other, name)]


def canonical_json(value: object) -> bytes:
    """JSON with sorted keys and no spaces, so that equal values have equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _require(holds: object, spec: TableSpec, field: str, remedy: str) -> None:
    if not holds:
        raise ValueError(f"table {spec.name!r}: {field}={_shorten(getattr(spec, field))} is not possible: {remedy}")


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
