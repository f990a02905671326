"""Deduplication of the row ids of a lookup, and the inverse index that maps the distinct rows back."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from memory_service.errors import InvalidRequest, RowOutOfRange
from memory_service.tables.spec import TableSpec


class Distinct(Protocol):
    """The distinct row ids of a lookup, and the index of each requested id among them."""

    ids: NDArray[np.int64]
    """Distinct ids, int64 [U]."""
    size: int
    """Number of requested ids, repeats included."""

    def inverse(self) -> NDArray[np.int64]:
        """Index into `ids` for every requested id, int64 in the shape of the request."""


class DistinctRows:
    """The distinct row ids of a lookup, and the index of each requested id among them.

    Takes two thirds of the time of `numpy.unique`: if id and position fit into one 64-bit word, sorting such words is
    faster than an argsort of the ids. The inverse index is computed separately, since only the distinct ids are needed
    before the request can be sent.
    """

    def __init__(self, spec: TableSpec, rows: np.ndarray) -> None:
        """Deduplicate row ids.

        Args:
            spec: the table.
            rows: integer array of row ids, of any shape.

        Raises:
            InvalidRequest: the dtype is not an integer type.
            RowOutOfRange: an id is not in the table.
        """
        rows = np.asarray(rows)
        check_ids(spec, rows)
        self._shape = rows.shape
        self.size = rows.size
        """Number of requested ids, repeats included."""
        asked = rows.ravel().astype(np.int64, copy=False)
        bits = max(1, (asked.size - 1).bit_length())
        if spec.rows >> (63 - bits):
            order = np.argsort(asked, kind="stable")
            ids, self._places = asked[order], order
        else:
            words = (asked << bits) | np.arange(asked.size)
            words.sort()
            ids, self._places = words >> bits, words & ((1 << bits) - 1)
        self._first = np.ones(ids.size, np.bool_)
        np.not_equal(ids[1:], ids[:-1], out=self._first[1:])
        self.ids: NDArray[np.int64] = ids[self._first]
        """Distinct ids in ascending order, int64 [U]."""

    def inverse(self) -> NDArray[np.int64]:
        """Index into `ids` for every requested id, int64 in the shape of the request."""
        inverse = np.empty(self.size, np.int64)
        inverse[self._places] = np.cumsum(self._first) - 1
        return inverse.reshape(self._shape)


def out_of_range(spec: TableSpec, row: int) -> RowOutOfRange:
    """Error for a row id that the table does not have."""
    return RowOutOfRange(f"table {spec.name!r} has rows 0 to {spec.rows - 1}, requested row {row}")


def check_ids(spec: TableSpec, rows: np.ndarray) -> None:
    """Check that row ids are integers, and rows of a table.

    Raises:
        InvalidRequest, RowOutOfRange: they are not.
    """
    if not rows.size:
        return
    if rows.dtype.kind not in "iu":
        raise InvalidRequest(f"table {spec.name!r}: row ids must be integers, got dtype {rows.dtype}")
    low, high = int(rows.min()), int(rows.max())
    if low < 0 or high >= spec.rows:
        raise out_of_range(spec, low if low < 0 else high)
