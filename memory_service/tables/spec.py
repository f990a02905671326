"""Table specs: geometry, hash and row format of a table, and the fingerprint by which two processes compare them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_service.tables.checks import Check, check_fields, check_keys, choice, refusal, shorten, text, whole, wholes
from memory_service.tables.rows import RowFormat

DEFAULT_BLOCK_ROWS = 4096
OPTIMIZER_SUFFIX = ".optimizer"
"""Ends the name of the table that holds the optimizer state of another, on the same shards block by block."""
_UINT32, _INT64 = 2**32 - 1, 2**63 - 1  # bounds on the wire
_MAX_ROWS = 1 << 48
_MAX_ROW_BYTES = 1 << 20  # a message with rows, of at most 4 MiB, carries at least one
_MAX_BLOCK_BYTES = 1 << 30  # a block is copied and written as a whole
_FIELDS: Mapping[str, Check] = {
    "name": text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", "use up to 128 letters, digits, '.', '_' or '-'"),
    "layer": whole(0, _UINT32),
    "column_rows": wholes(1, _MAX_ROWS),
    "max_ngram": whole(2, _UINT32),
    "heads": whole(1, _UINT32),
    "multipliers": wholes(1, _INT64),
    "pad_id": whole(0, _INT64),
    "token_map_sha256": text(r"[0-9a-f]{64}", "give 64 lower-case hex digits"),
    "dim": whole(1, _UINT32),
    "row_format": choice(RowFormat),
    "block_rows": whole(1, _UINT32),
}
_NOT_FINGERPRINTED = ("name", "block_rows")  # neither changes which bytes a row id means


@dataclass(frozen=True)
class TableSpec:
    """Spec of one Engram layer's table.

    Raises:
        ValueError: a field has the wrong type, is out of bounds or contradicts another; the message names it.
    """

    name: str
    """Unique within a memory, and a folder name in snapshots, such as "engram.1"."""
    layer: int
    """Index of the model layer that reads the table, counted from 0."""
    column_rows: tuple[int, ...]
    """Rows of each column, (max_ngram - 1) * heads of them, 2-gram heads first."""
    max_ngram: int
    """Length of the longest n-gram that is hashed, at least 2."""
    heads: int
    """Number of hash heads for each n-gram order."""
    multipliers: tuple[int, ...]
    """Hash multipliers, one for each of the `max_ngram` look-back positions."""
    pad_id: int
    """Compressed token id read at positions that lie outside the sequence or are blocked."""
    token_map_sha256: str
    """SHA-256 of the token map, 64 hex digits."""
    dim: int
    """Number of values in a row, the length of one column's vector."""
    row_format: RowFormat
    """Format in which a row is packed into bytes."""
    block_rows: int = DEFAULT_BLOCK_ROWS
    """Number of rows in a block, a power of two."""

    def __post_init__(self) -> None:
        for field, value in check_fields(self._owner, vars(self), _FIELDS).items():
            object.__setattr__(self, field, value)
        columns = (self.max_ngram - 1) * self.heads
        power_of_two = self.block_rows & (self.block_rows - 1) == 0
        self._require(len(self.column_rows) == columns, "column_rows", f"give (max_ngram - 1) * heads = {columns}")
        self._require(self.rows <= _MAX_ROWS, "column_rows", f"keep the sum within {_MAX_ROWS}")
        self._require(len(self.multipliers) == self.max_ngram, "multipliers", f"give max_ngram = {self.max_ngram}")
        self._require(power_of_two, "block_rows", "use a power of two such as 4096")
        self._check_block_bytes()

    def _check_block_bytes(self) -> None:
        try:
            block_bytes = self.block_rows * self.row_bytes
        except ValueError as error:
            raise ValueError(f"{self._owner}: {error}") from None
        self._require(self.row_bytes <= _MAX_ROW_BYTES, "dim", f"keep a row within {_MAX_ROW_BYTES} bytes")
        remedy = f"{self.block_rows} such rows, a block, exceed {_MAX_BLOCK_BYTES} bytes: reduce dim or block_rows"
        self._require(block_bytes <= _MAX_BLOCK_BYTES, "dim", remedy)

    def _require(self, holds: bool, field: str, remedy: str) -> None:
        if not holds:
            raise refusal(self._owner, field, getattr(self, field), remedy)

    @property
    def _owner(self) -> str:
        return f"table {shorten(self.name)}"

    @cached_property
    def rows(self) -> int:
        """Number of rows in the whole table."""
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
        """Number of blocks in the whole table; the last block may be short."""
        return -(-self.rows // self.block_rows)

    @cached_property
    def column_offsets(self) -> NDArray[np.int64]:
        """First row of each column, int64 [columns]."""
        return np.cumsum([0, *self.column_rows[:-1]], dtype=np.int64)

    def block_length(self, block: int) -> int:
        """Number of rows in one block: `block_rows`, or the remainder for the last block."""
        return min(self.block_rows, self.rows - block * self.block_rows)

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the canonical JSON of all fields except `name` and `block_rows`."""
        meaning = {key: value for key, value in self.to_json().items() if key not in _NOT_FINGERPRINTED}
        return hashlib.sha256(canonical_json(meaning)).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {**asdict(self), "row_format": self.row_format.value}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TableSpec:
        """Rebuild a spec from the result of `to_json`.

        Raises:
            ValueError: `values` is not an object with exactly the fields of a spec, or a value is not possible.
        """
        return cls(**check_keys("table spec", values, {field.name for field in fields(cls)}))

    def differing_fields(self, other: TableSpec) -> list[str]:
        """Names of the fingerprinted fields in which the two specs differ."""
        names = [field.name for field in fields(self) if field.name not in _NOT_FINGERPRINTED]
        return [name for name in names if getattr(self, name) != getattr(other, name)]


def canonical_json(value: object) -> bytes:
    """JSON with sorted keys and no spaces, so that equal values have equal bytes. NaN raises ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
