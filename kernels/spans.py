"""How rows laid end to end divide into sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spans:
    """B sequences without padding: sequence b has the rows `offsets[b]` to `offsets[b + 1]`."""

    offsets: Tensor
    """[B + 1] int64, on the rows' device; the first is 0, the last the number of rows."""

    longest: int
    """Rows of the longest sequence, known to the host, which sizes launches by it."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Spans:
        """Lay sequences of these lengths end to end."""
        offsets = torch.tensor([0, *lengths]).cumsum(0)
        return cls(offsets.to(device, non_blocking=True), max(lengths, default=0))
