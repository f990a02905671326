"""How a batch job divides its input."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class JobOptions:
    """How a batch job divides its input."""

    batch_size: int | None = None
    """Lines that a worker is given at a time. None: as many as its engine runs together."""

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size: {self.batch_size} is too few; give at least 1")
