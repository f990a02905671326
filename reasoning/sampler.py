"""Choosing the next token of each sequence from its logits."""

from __future__ import annotations

import torch
from torch import Tensor

from reasoning.request import SamplingParams


class Sampler:
    """Draws the tokens of one request. Its own generator keeps it independent of its neighbours."""

    def __init__(self, params: SamplingParams):
        self.params = params
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    def choose(self, logits: Tensor) -> int:
        """Return a token id for logits [vocabulary]."""
        params = self.params
        if params.temperature == 0:
            return int(logits.argmax())
        scores, ids = logits.float().cpu().sort(descending=True, stable=True)
        scores = scores[: params.top_k or None].double()
        # Against the likeliest token and in fp64, the smallest temperature and top_p there are still work.
        probabilities = ((scores - scores[0]) / params.temperature).softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= params.top_p, 0.0)  # the likeliest token always stays
        return int(ids[torch.multinomial(probabilities, 1, generator=self._generator)])
