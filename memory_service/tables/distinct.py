"""Row ids without repeats: what a lookup asks for, and how what it finds goes back to who asked."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memory_service.errors import InvalidRequest, RowOutOfRange
from memory_service.tables.spec import TableSpec


class DistinctRows:
    """The distinct ones of some row ids, and for each id asked for its place among them.

    `numpy.unique` in two thirds of the time: where id and place fit one word, sorting such words is quicker than
    sorting places by id. And in two steps, since only the ids are needed before a request can travel.
    """

    def __init__(self, spec: TableSpec, rows: np.ndarray) -> None:
        """Refuse what is no row of the table: InvalidRequest for no integers, RowOutOfRange."""
        rows = np.asarray(rows)
        _check(spec, rows)
        self._shape = rows.shape
        self.size = rows.size
        """Ids asked for."""
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
        """Distinct ids, ascending, [U]."""

    def inverse(self) -> NDArray[np.int64]:
        """Index into `ids` of every id asked for, in their shape."""
        inverse = np.empty(self.size, np.int64)
        inverse[self._places] = np.cumsum(self._first) - 1
        return inverse.reshape(self._shape)


def out_of_range(spec: TableSpec, row: int) -> RowOutOfRange:
    """The error for an id that the table does not have."""
    return RowOutOfRange(f"table {spec.name!r} has rows 0 to {spec.rows - 1}, asked for row {row}")


def _check(spec: TableSpec, rows: np.ndarray) -> None:
    if not rows.size:
        return
    if rows.dtype.kind not in "iu":
        raise InvalidRequest(f"table {spec.name!r}: row ids must be integers, got dtype {rows.dtype}")
    low, high = int(rows.min()), int(rows.max())
    if low < 0 or high >= spec.rows:
        raise out_of_range(spec, low if low < 0 else high)
