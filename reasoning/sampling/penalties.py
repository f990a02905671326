"""Penalties on tokens that a sequence already contains, which reduce repetition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from reasoning.request import SamplingParams


class Penalties:
    """Counts the tokens of a sequence and lowers their logits. The cost of a step grows with the distinct tokens."""

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int]):
        self._params = params
        counted = prompt_ids if params.repetition_penalty != 1 else ()
        self._place = {token: place for place, token in enumerate(dict.fromkeys(counted))}
        self._ids = np.array(list(self._place), np.int64)
        self._counts = np.zeros(len(self._ids), np.float32)  # occurrences in the output, not in the prompt

    @staticmethod
    def wanted(params: SamplingParams) -> bool:
        """Return whether any penalty is set."""
        return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0

    def count(self, token: int) -> None:
        """Count a token of the output."""
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._ids):
            self._grow()
        self._ids[place] = token
        self._counts[place] += 1

    def apply(self, logits: Tensor) -> Tensor:
        """Return a copy of fp32 logits [vocabulary] with penalties applied.

        First, the logit l of a token that prompt or output contain becomes l / r for l > 0 and l * r otherwise, with
        the repetition_penalty r. Then, with the number c of times that the output contains the token, it becomes
        l - c * frequency_penalty - (c > 0) * presence_penalty.
        """
        params, used = self._params, len(self._place)
        ids, counts = (torch.from_numpy(array[:used]).to(logits.device) for array in (self._ids, self._counts))
        scores = logits[ids]
        scores = torch.where(scores > 0, scores / params.repetition_penalty, scores * params.repetition_penalty)
        scores -= counts * params.frequency_penalty + (counts > 0) * params.presence_penalty
        return logits.index_put((ids,), scores)

    def _grow(self) -> None:
        """Double the room, so that the amortised cost of counting a token is constant."""
        more = max(64, len(self._ids))
        self._ids, self._counts = (np.append(array, np.zeros(more, array.dtype)) for array in (self._ids, self._counts))
