"""The gradients of one step, as ranks push them: part by part, in any order, any part more than once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory_service.errors import InvalidRequest

MAX_PARTS = 1 << 16


@dataclass(frozen=True)
class Push:
    """Gradients of some rows of one table, from one rank, for one step: a part of what the rank has for a shard."""

    incarnation: int
    """Number of the attempt at training; pushes of earlier attempts are refused."""
    rank: int
    """Rank of the worker, from 0."""
    step: int
    """Number of the step, from 1."""
    table: str
    """Name of the table."""
    part: int
    """Number of this part, from 0."""
    parts: int
    """Parts that the rank has for this table, this step and this shard: at least one, if only an empty one."""
    rate: float
    """Learning rate of the step, the same from all ranks."""
    rows: NDArray[np.int64]
    """Row ids in ascending order, each once, [n]."""
    gradients: NDArray[np.float32]
    """Gradient of each row, summed over the positions that used it, [n, dim]."""

    def check(self) -> None:
        """Check what can be checked without the table.

        Raises:
            InvalidRequest: a field is out of range, or a gradient is not finite; names rank, step, table and row.
        """
        if not 0 <= self.part < self.parts <= MAX_PARTS:
            raise InvalidRequest(f"{self}: part {self.part} of {self.parts}: count from 0, up to {MAX_PARTS} parts")
        if not (np.isfinite(self.rate) and self.rate >= 0):
            raise InvalidRequest(f"{self}: the learning rate {self.rate} must be 0 or more, and finite")
        if len(self.rows) > 1 and (np.diff(self.rows) <= 0).any():
            raise InvalidRequest(f"{self}: row ids must ascend, each once: sum the gradients of a row first")
        finite = np.isfinite(self.gradients).all(axis=1)
        if not finite.all():
            raise InvalidRequest(
                f"{self}: the gradient of row {self.rows[np.argmin(finite)]} is not finite: nothing of the step is "
                "applied; lower the learning rate, clip gradients, or look at the batch of this step"
            )

    def __str__(self) -> str:
        return f"rank {self.rank}, step {self.step}, table {self.table!r}"


@dataclass(frozen=True)
class RowGradients:
    """Gradients of distinct rows of one table, summed over the ranks."""

    rows: NDArray[np.int64]
    """Row ids in ascending order, [n]."""
    gradients: NDArray[np.float32]
    """[n, dim]."""

    @property
    def squared_norm(self) -> float:
        """Sum of the squares of all values."""
        return float(np.einsum("nd,nd->n", self.gradients, self.gradients, dtype=np.float64).sum())


class StepPushes:
    """The pushes of one step from all ranks."""

    def __init__(self, ranks: int, dims: Mapping[str, int]) -> None:
        """Expect pushes.

        Args:
            ranks: number of ranks.
            dims: values of a row, by table.
        """
        self._ranks = ranks
        self._dims = dims
        self._parts: dict[tuple[str, int], dict[int, Push]] = {}  # by table and rank, then by part
        self._rates: dict[int, float] = {}

    def add(self, push: Push) -> None:
        """Take a push; one that is here already changes nothing.

        Raises:
            InvalidRequest: it contradicts an earlier one: another number of parts, or another learning rate.
        """
        parts = self._parts.get((push.table, push.rank), {})
        if push.part in parts:
            return
        for other in parts.values():
            if other.parts != push.parts:
                raise InvalidRequest(f"{push}: a part of {push.parts}, after one of {other.parts}: keep to one number")
        for rank, rate in self._rates.items():
            if rate != push.rate:
                raise InvalidRequest(
                    f"{push}: the learning rate is {push.rate!r}, and rank {rank} has {rate!r}: nothing of the step is "
                    "applied; give all ranks the same schedule"
                )
        self._rates[push.rank] = push.rate
        self._parts.setdefault((push.table, push.rank), {})[push.part] = push

    @property
    def rate(self) -> float:
        """Learning rate of the step, once a push is in."""
        return next(iter(self._rates.values()))

    @property
    def missing_ranks(self) -> list[int]:
        """Ranks of which pushes are missing."""
        return [rank for rank in range(self._ranks) if not all(self._has_all(table, rank) for table in self._dims)]

    def sums(self) -> dict[str, RowGradients]:
        """Gradients by table, added up in the order of ranks and parts, so that the result is always the same."""
        return {table: _sum(self._in_order(table), dim) for table, dim in self._dims.items()}

    def _has_all(self, table: str, rank: int) -> bool:
        parts = self._parts.get((table, rank))
        return parts is not None and len(parts) == next(iter(parts.values())).parts

    def _in_order(self, table: str) -> list[Push]:
        each = (self._parts[table, rank] for rank in range(self._ranks))
        return [parts[number] for parts in each for number in sorted(parts)]


def _sum(pushes: Iterable[Push], dim: int) -> RowGradients:
    pushes = list(pushes)
    rows = np.unique(np.concatenate([np.empty(0, np.int64), *(push.rows for push in pushes)]))
    total = np.zeros((len(rows), dim), np.float32)
    for push in (each for each in pushes if len(each.rows)):
        total[np.searchsorted(rows, push.rows)] += push.gradients
    return RowGradients(rows, total)
