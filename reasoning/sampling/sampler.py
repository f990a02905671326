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
"""Number of buckets into which `nucleus` divides scores: few enough tokens of a large vocabulary share one to sort."""
_SPAN = 40.0
"""Scores further below the highest share the last bucket: a whole vocabulary of them weighs 1e-12."""
_NARROWEST = 1e-12
"""Smallest span, used where all scores are equal."""


class SamplerError(RequestError):
    """Logits without a most likely token, which is the model's fault; the field is "model"."""

    def __init__(self, highest: float) -> None:
        super().__init__("model", f"its highest logit is {highest}, so there is no likeliest token; check its weights")


class Chosen(NamedTuple):
    """A chosen token and, if requested, its log-probability in the model's own distribution."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """The most likely tokens with their log-probabilities, best first; tokens of probability 0 are left out."""


class Sampler:
    """Chooses the tokens of a sample.

    A draw takes a number u in [0, 1) from the sample's own generator (Python's `random.Random`, whose stream for a seed
    is the same everywhere) and chooses the token at u of the cumulative distribution: kept tokens by ascending id,
    renormalised, in fp64. So a draw depends on the logits and on the number of earlier draws, but not on neighbours in
    the batch or on the order of equal logits, and on the device only through the rounding of fp64 sums.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int], index: int = 0):
        """Create the sampler for sample `index` of a request."""
        self.params = params
        self._random = random.Random(None if params.seed is None else params.seed + index)
        self._penalties = Penalties(params, prompt_ids) if Penalties.wanted(params) else None

    @property
    def plain(self) -> bool:
        """Whether the highest logit decides: no draw, no penalties, no log-probabilities."""
        return self.params.temperature == 0 and self._penalties is None and self.params.logprobs is None

    def choose(self, logits: Tensor, likeliest: int | None = None, highest: float | None = None) -> Chosen:
        """Choose the next token. Every call counts the token as output for the penalties, and draws at most once.

        Args:
            logits: [vocabulary], of any float type, on any device.
            likeliest: id of the highest logit if it is known; used if `plain`.
            highest: the highest logit if it is known, so that a `plain` choice need not read it from the device.

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
        # Relative to the highest score and in fp64, even the smallest temperature works.
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
    """Return the `count` largest of scores [n] and their indices in descending order; ties go to the first index."""
    values, ids = scores.topk(count)
    if count and int((scores == values[-1]).sum()) > int((values == values[-1]).sum()):
        above = ids[values > values[-1]]  # which of the tied scores `topk` returns is not defined
        ids = torch.cat([above, (scores == values[-1]).nonzero()[: count - len(above), 0]])
    ids = ids.sort().values
    values, order = scores[ids].sort(descending=True, stable=True)
    return values, ids[order]


def _weights(scores: Tensor, params: SamplingParams) -> Tensor:
    """Return unnormalised probabilities of scores [n], whose highest is 0; tokens left out get 0."""
    weights = scores.exp()
    if params.top_p < 1:
        weights = nucleus(scores, weights, params.top_p)
    if params.min_p:
        weights = weights.masked_fill(weights < params.min_p, 0.0)
    return weights


def nucleus(scores: Tensor, weights: Tensor, top_p: float) -> Tensor:
    """Return weights = exp(scores), 0 outside the nucleus: the fewest tokens that reach `top_p` of the total.

    Instead of sorting scores [n], whose highest is 0, this counts them into buckets in descending order. Buckets before
    the bucket that reaches the sum are kept whole; only that bucket is sorted, equal scores by index.
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
    """Refuse logits whose maximum is not finite; it is NaN if any logit is."""
    if not math.isfinite(highest):
        raise SamplerError(highest)
