"""A batch of one token a sequence whose positions and pages are known on the device only, for recorded steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kernels.spans import Spans
from reasoning.model.batch import PAGE_TOKENS, Batch, Chunks, Decoding


@dataclass(frozen=True, kw_only=True)
class DecodeBatch(Batch):
    """The next token of each of B sequences, with places computed on the device."""

    contexts: Tensor  # [B] int64, positions of each sequence, that of its token included
    table: Tensor  # [B, P] int64, pages of each sequence

    @classmethod
    def of(cls, token_ids: Tensor, contexts: Tensor, table: Tensor) -> DecodeBatch:
        """Make a batch of B tokens. The tensors, all on one device, may change their values between uses."""
        return cls(token_ids, lengths=(1,) * len(token_ids), starts=(), contexts=contexts, table=table)

    @cached_property
    def positions(self) -> Tensor:
        """Position of each token in its sequence, [B] int64."""
        return self.contexts - 1

    @cached_property
    def places(self) -> Tensor:
        """Place of each token in the cache, counted in positions, [B] int64."""
        return self._places_of(self.positions[:, None])[:, 0]

    def earlier(self, distances: Sequence[int]) -> Tensor:
        """Find the tokens that come `distances` positions before each; see `Batch.earlier`."""
        position = torch.stack([self.positions - distance for distance in distances], dim=1)
        return self._places_of(position.clamp_min(0)).masked_fill(position < 0, -1)

    @cached_property
    def parts(self) -> tuple[Decoding | Chunks, ...]:
        """The whole batch as a single part for attention."""
        tokens = torch.arange(len(self.lengths) + 1, device=self.token_ids.device)
        return (Decoding(tokens[:-1], Spans(tokens, longest=1), self.table, self.contexts),)

    def _places_of(self, position: Tensor) -> Tensor:
        """Places of positions [B, n] in the cache."""
        page = self.table.gather(1, position // PAGE_TOKENS)
        return page * PAGE_TOKENS + position % PAGE_TOKENS
