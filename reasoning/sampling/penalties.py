"""Penalties on tokens that a sequence already has, which keep it from repeating itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from reasoning.request import SamplingParams


class Penalties:
    """Counts the tokens of one sequence and lowers their logits. A step costs as much as there are different tokens."""

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int]):
        self._params = params
        counted = prompt_ids if params.repetition_penalty != 1 else ()
        self._place = {token: place for place, token in enumerate(dict.fromkeys(counted))}
        self._ids = np.array(list(self._place), np.int64)
        self._counts = np.zeros(len(self._ids), np.float32)  # of the output alone

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
        """Return fp32 logits [vocabulary] with penalties, as a copy.

        With c the times a token is in the output, and after repetition_penalty r on what prompt or output contain
        (l / r for l > 0, else l * r): l - c * frequency_penalty - (c > 0) * presence_penalty.
        """
        params, used = self._params, len(self._place)
        ids, counts = (torch.from_numpy(array[:used]).to(logits.device) for array in (self._ids, self._counts))
        scores = logits[ids]
        scores = torch.where(scores > 0, scores / params.repetition_penalty, scores * params.repetition_penalty)
        scores -= counts * params.frequency_penalty + (counts > 0) * params.presence_penalty
        return logits.index_put((ids,), scores)

    def _grow(self) -> None:
        """Make room for as many tokens again, so that counting costs the same however long the output."""
        more = max(64, len(self._ids))
        self._ids, self._counts = (np.append(array, np.zeros(more, array.dtype)) for array in (self._ids, self._counts))
