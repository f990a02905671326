"""Adam steps with a zero gradient, all at once: how far a row moves in the steps in which it was not touched.

After a row's last gradient, at step t, its moments m and v only decay, and step t + j moves a value by

    rate[t+j] * beta1^j m / (1 - beta1^(t+j)) / (sqrt(beta2^j v / (1 - beta2^(t+j))) + eps)  =  m * a_j / (b_j s + eps)

with s = sqrt(v), and a_j and b_j the same for all values of all rows that were last touched at t. The sum over j is a
sum of 1 / (b s + eps) over places b_j with weights a_j. The places lie close together, since beta2 is nearly one, and
the function is smooth. So interpolating it at a few Chebyshev nodes between the smallest and the largest place gives
the sum in fp32 precision, at a cost that does not grow with the number of steps (Trefethen, Approximation Theory and
Approximation Practice, chapter 8). Terms beyond a few hundred steps are below 2^-40 of the first and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_PRECISION = 2.0**-30  # of the interpolation; fp32 has 2**-24
_NEGLIGIBLE = 2.0**-40
_MOST_NODES = 64


@dataclass(frozen=True)
class BetaPair:
    """Constants of Adam."""

    beta1: float
    """Decay rate of the first moment."""
    beta2: float
    """Decay rate of the second moment."""
    eps: float
    """Added to the root of the second moment."""

    @property
    def horizon(self) -> int:
        """Number of zero steps after which a row has come to rest: further terms are negligible."""
        ratio = self.beta1 / math.sqrt(self.beta2) if self.beta2 else 0.0
        return 1 if ratio == 0 else max(1, math.ceil(math.log(_NEGLIGIBLE) / math.log(ratio)))


def zero_step_movement(
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    last: NDArray[np.int64],
    step: int,
    rates: Sequence[float],
    betas: BetaPair,
) -> NDArray[np.float32]:
    """Return what steps with a zero gradient subtract from rows, [n, dim].

    Args:
        first: first moments after the last gradient, [n, dim].
        second: second moments after the last gradient, [n, dim].
        last: the steps of the last gradients, [n], from 1 and below `step`.
        step: the step up to which the rows shall be current.
        rates: learning rates of the steps up to `step`, the last one its own, from the earliest after `last` on.
        betas: constants of Adam.
    """
    touched, group = np.unique(last, return_inverse=True)
    weights, places = _quadrature(touched, step, rates, betas)
    root = np.sqrt(second)
    total = np.zeros_like(first)
    eps = np.float32(betas.eps)
    for node in range(weights.shape[1]):
        denominator = root * places[group, node, None]
        denominator += eps
        total += weights[group, node, None] / denominator
    return first * total


def _quadrature(
    touched: NDArray[np.int64], step: int, rates: Sequence[float], betas: BetaPair
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights and nodes, [groups, nodes] each, of the sums for rows last touched at `touched` [groups]."""
    weights, places, valid = _terms(touched, step, rates, betas)
    low = np.where(valid, places, np.inf).min(axis=1, keepdims=True)
    high = np.where(valid, places, 0).max(axis=1, keepdims=True)
    nodes = _nodes(float((high / low).max()))
    middle, half = (high + low) / 2, (high - low) / 2
    x = np.where(valid, places - middle, 0) / np.where(half > 0, half, 1)
    angles = (np.arange(nodes) + 0.5) * math.pi / nodes
    moments = _chebyshev_moments(weights, x, nodes)
    moments[:, 1:] *= 2
    at_nodes = np.cos(np.arange(nodes)[:, None] * angles) / nodes  # T_k at the nodes
    return (moments @ at_nodes).astype(np.float32), (middle + half * np.cos(angles)).astype(np.float32)


def _terms(
    touched: NDArray[np.int64], step: int, rates: Sequence[float], betas: BetaPair
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """a_j, b_j and which of them there are, [groups, steps] each."""
    missed = int(min(step - touched.min(), betas.horizon))
    j = np.arange(1, missed + 1, dtype=np.float64)
    at = touched[:, None] + np.arange(1, missed + 1)
    valid = at <= step
    rate = np.asarray(rates, np.float64)[np.minimum(at, step) - step - 1]
    weights = rate * betas.beta1**j / -np.expm1(at * math.log(betas.beta1)) if betas.beta1 else np.zeros_like(rate)
    places = np.sqrt(betas.beta2**j / -np.expm1(at * math.log(betas.beta2)))
    return np.where(valid, weights, 0), places, valid


def _nodes(ratio: float) -> int:
    """Nodes that give the precision where the places differ by a factor of at most `ratio`.

    1 / (b s + eps) has its pole at or below zero, so the error shrinks by rho with each node.
    """
    root = math.sqrt(ratio)
    if root <= 1:
        return 1
    rho = (root + 1) / (root - 1)
    return min(_MOST_NODES, 1 + math.ceil(-math.log(_PRECISION) / math.log(rho)))


def _chebyshev_moments(weights: NDArray[np.float64], x: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Sums of weights * T_k(x) over the last axis for k below `count`, [groups, count]."""
    moments = np.empty((len(weights), count))
    before, now = x, np.ones_like(x)  # T_-1 and T_0
    for k in range(count):
        moments[:, k] = (weights * now).sum(axis=1)
        before, now = now, 2 * x * now - before
    return moments
