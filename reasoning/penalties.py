"""Penalties on tokens that a sequence already has, which keep it from repeating itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reasoning.request import SamplingParams


class Penalties:
    """Counts the tokens of one sequence and lowers their logits. A step costs as much as there are different tokens."""

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int]):
        self._params = params
        counted = prompt_ids if params.repetition_penalty != 1 else ()
        self._place = {token: place for place, token in enumerate(dict.fromkeys(counted))}
        self._ids = torch.tensor(list(self._place), dtype=torch.int64)
        self._counts = torch.zeros(len(self._ids))  # of the output alone

    @staticmethod
    def wanted(params: SamplingParams) -> bool:
        """Whether any penalty is set."""
        return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0

    def count(self, token: int) -> None:
        """Count a token of the output."""
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._ids):
            self._grow()
        self._ids[place] = token
        self._counts[place] += 1

    def apply(self, logits: Tensor) -> Tensor:
        """Return float logits [vocabulary] with penalties, as a copy.

        With c the times a token is in the output, and after repetition_penalty r on what prompt or output contain
        (l / r for l > 0, else l * r): l - c * frequency_penalty - (c > 0) * presence_penalty.
        """
        used = len(self._place)
        ids, counts = self._ids[:used].to(logits.device), self._counts[:used].to(logits.device)
        scores, params = logits[ids], self._params
        scores = torch.where(scores > 0, scores / params.repetition_penalty, scores * params.repetition_penalty)
        scores -= counts * params.frequency_penalty + (counts > 0) * params.presence_penalty
        return logits.index_put((ids,), scores)

    def _grow(self) -> None:
        """Make room for as many tokens again, so that counting costs the same however long the output."""
        more = max(64, len(self._ids))
        self._ids = torch.cat([self._ids, self._ids.new_zeros(more)])
        self._counts = torch.cat([self._counts, self._counts.new_zeros(more)])
