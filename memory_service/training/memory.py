"""The interface of a memory that learns, wherever its rows live."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from memory_service.memory import Rows
from memory_service.tables.spec import TableSpec


class LearningMemory(Protocol):
    """Tables that take the gradients of one rank of a training run.

    A step, numbered from 1: look rows up, push the gradients of every table, ask for the norm, commit. Futures end in a
    value or in a MemoryServiceError, after which the run can go on from a checkpoint only.
    """

    @property
    def specs(self) -> Mapping[str, TableSpec]:
        """The tables that learn, by name."""

    def lookup(self, table: str, rows: np.ndarray, step: int) -> Future[Rows]:
        """Request rows as they are after `step` steps, which must be committed; see Memory.lookup."""

    def push(
        self, step: int, table: str, rows: NDArray[np.int64], gradients: NDArray[np.float32], rate: float
    ) -> Future[None]:
        """Give the gradients of one table for a step, once.

        Args:
            step: number of the step.
            table: name of the table.
            rows: ascending row ids, each once, [n].
            gradients: their gradients, summed over the positions that used them, [n, dim].
            rate: learning rate of the step.
        """

    def squared_norm(self, step: int) -> Future[float]:
        """The sum of squares of the gradients that all ranks have pushed for a step, summed over the ranks."""

    def commit(self, step: int, scale: float) -> Future[None]:
        """Apply a step with the summed gradients multiplied by `scale`; every rank says so, with the same factor."""

    def close(self) -> None:
        """Release threads and connections."""
