"""Choosing the next token of each sequence from its logits."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reasoning.request import RequestError, SamplingParams
from reasoning.sampling.penalties import Penalties

_BUCKETS = 4096
"""How finely `nucleus` divides scores: so many buckets leave a few dozen of a large vocabulary to sort."""
_SPAN = 40.0
"""Scores lower than the highest by more than this share the last bucket: a whole vocabulary of them weighs 1e-12."""
_NARROWEST = 1e-12
"""Least span, where all scores are equal."""


class SamplerError(RequestError):
    """Logits that no token can be chosen from; its field is "model"."""

    def __init__(self, highest: float) -> None:
        super().__init__("model", f"its highest logit is {highest}, so there is no likeliest token; check its weights")


class Chosen(NamedTuple):
    """A token and, where asked for, what the model's own distribution says of it."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens and their log-probabilities, best first, without those of probability 0."""


class Sampler:
    """Chooses the tokens of one sample.

    A draw takes one number u from [0, 1) from a generator of the sample's own (Python's `random.Random`, whose stream
    for a seed is the same everywhere). The kept tokens are laid out by ascending id, each as long as its probability,
    in fp64 and renormalised; the one that u falls on is chosen. So what is drawn depends on the logits and on how many
    draws came before, not on neighbours or on how equal logits happen to be sorted, and on the device only as far as
    sums of fp64 round differently there.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int], index: int = 0):
        """Make the sampler of sample `index` of a request."""
        self.params = params
        self._random = random.Random(None if params.seed is None else params.seed + index)
        self._penalties = Penalties(params, prompt_ids) if Penalties.wanted(params) else None

    @property
    def plain(self) -> bool:
        """Whether the token of the highest logit is all there is to know: no draw, no penalties, no logprobs."""
        return self.params.temperature == 0 and self._penalties is None and self.params.logprobs is None

    def choose(self, logits: Tensor, likeliest: int | None = None, highest: float | None = None) -> Chosen:
        """Choose the next token, which thereby is part of the output: every call counts it, and draws once if at all.

        Args:
            logits: [vocabulary], of any float type, on any device.
            likeliest: id of the highest logit where that is known already; used if `plain`.
            highest: that logit, which spares a `plain` choice from reading it from the device.

        Raises:
            SamplerError: a logit is NaN or infinite, or all are -inf.
        """
        if self.plain:
            return Chosen(_argmax(logits, likeliest, highest))
        logits = logits.float()
        scores = logits if self._penalties is None else self._penalties.apply(logits)
        token = _argmax(scores) if self.params.temperature == 0 else self._draw(scores)
        if self._penalties is not None:
            self._penalties.count(token)
        return self._with_logprobs(token, logits)

    def _draw(self, scores: Tensor) -> int:
        params, highest = self.params, float(scores.max())
        _check(highest)
        ids = None
        if 0 < params.top_k < len(scores):
            ids = largest(scores, params.top_k)[1].sort().values
            scores = scores[ids]
        # Against the likeliest token and in fp64, the smallest temperature is still work.
        ends = _weights((scores.double() - highest) / params.temperature, params).cumsum(-1)
        place = int(torch.searchsorted(ends, ends[-1] * self._random.random(), right=True))
        return place if ids is None else int(ids[place])

    def _with_logprobs(self, token: int, logits: Tensor) -> Chosen:
        if self.params.logprobs is None:
            return Chosen(token)
        total = float(logits.logsumexp(-1))
        scores, ids = largest(logits, min(self.params.logprobs, len(logits)))
        top = zip(ids.tolist(), scores.tolist(), strict=True)
        return Chosen(token, float(logits[token]) - total, tuple((i, s - total) for i, s in top if s > -math.inf))


def largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest of scores [n] and their indices, from the largest down, of equal ones the first."""
    values, ids = scores.topk(count)
    if count and int((scores == values[-1]).sum()) > int((values == values[-1]).sum()):
        above = ids[values > values[-1]]  # which of the equal ones `topk` finds is not defined
        ids = torch.cat([above, (scores == values[-1]).nonzero()[: count - len(above), 0]])
    ids = ids.sort().values
    values, order = scores[ids].sort(descending=True, stable=True)
    return values, ids[order]


def _weights(scores: Tensor, params: SamplingParams) -> Tensor:
    """Return probabilities up to a factor, 1 for the highest of scores [n], which is 0; 0 for what is left out."""
    weights = scores.exp()
    if params.top_p < 1:
        weights = nucleus(scores, weights, params.top_p)
    if params.min_p:
        weights = weights.masked_fill(weights < params.min_p, 0.0)
    return weights


def nucleus(scores: Tensor, weights: Tensor, top_p: float) -> Tensor:
    """Return weights = exp(scores) with 0 for all but the likeliest, the fewest that sum to `top_p` of the total.

    Instead of sorting all of scores [n], the highest of which is 0, they are counted into buckets from the highest
    down: buckets before the one where the sum is reached stay, and only that one is sorted, equal scores by index.
    """
    span = max(min(-float(scores.min()), _SPAN), _NARROWEST)
    depth = (scores * (-_BUCKETS / span)).clamp_(max=_BUCKETS).long()
    sums = torch.bincount(depth, weights).cumsum(-1)
    wanted = top_p * sums[-1]
    last = min(int(torch.searchsorted(sums, wanted)), len(sums) - 1)
    edge = (depth == last).nonzero()[:, 0]
    edge = edge[scores[edge].sort(descending=True, stable=True).indices]
    ends = weights[edge].cumsum(-1) + (sums[last - 1] if last else 0.0)
    beyond = edge[ends - weights[edge] >= wanted]
    return weights.masked_fill(depth > last, 0.0).index_fill(0, beyond, 0.0)


def _argmax(logits: Tensor, likeliest: int | None = None, highest: float | None = None) -> int:
    likeliest = int(logits.argmax()) if likeliest is None else likeliest
    _check(float(logits[likeliest]) if highest is None else highest)
    return likeliest


def _check(highest: float) -> None:
    """Refuse logits by their maximum, which is NaN if one of them is."""
    if not math.isfinite(highest):
        raise SamplerError(highest)
