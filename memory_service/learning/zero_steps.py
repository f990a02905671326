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
from collections.abc import Iterator, Sequence
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
    total = np.empty_like(first)
    root, eps = np.sqrt(second), np.float32(betas.eps)
    for groups, weights, places in _quadratures(touched, step, rates, betas):
        position = np.full(len(touched), -1)
        position[groups] = np.arange(len(groups))
        rows = np.flatnonzero(position[group] >= 0)
        total[rows] = _evaluate(weights, places, position[group[rows]], root[rows], eps)
    return first * total


def _evaluate(
    weights: NDArray[np.float32],
    places: NDArray[np.float32],
    group: NDArray[np.int64],
    root: NDArray[np.float32],
    eps: np.float32,
) -> NDArray[np.float32]:
    """Sums of weights / (places * root + eps) over the nodes, [n, dim]."""
    total = np.zeros_like(root)
    for node in range(weights.shape[1]):
        denominator = root * places[group, node, None]
        denominator += eps
        total += weights[group, node, None] / denominator
    return total


def _quadratures(
    touched: NDArray[np.int64], step: int, rates: Sequence[float], betas: BetaPair
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]]:
    """Yield groups that have as many nodes: which of `touched`, and weights and nodes of their sums, [groups, nodes].

    What a group gets depends on nothing but itself, to the last bit: a row must come out alike whatever rows it is
    read with.
    """
    weights, places, valid = _terms(touched, step, rates, betas)
    low = np.where(valid, places, np.inf).min(axis=1, keepdims=True)
    high = np.where(valid, places, 0).max(axis=1, keepdims=True)
    middle, half = (high + low) / 2, (high - low) / 2
    x = np.where(valid, places - middle, 0) / np.where(half > 0, half, 1)
    counts = np.array([_nodes(ratio) for ratio in (high / low)[:, 0].tolist()])
    for nodes in np.unique(counts).tolist():
        chosen = np.flatnonzero(counts == nodes)
        angles = (np.arange(nodes) + 0.5) * math.pi / nodes
        at_nodes = _interpolated(weights[chosen], x[chosen], angles)
        yield chosen, at_nodes.astype(np.float32), (middle[chosen] + half[chosen] * np.cos(angles)).astype(np.float32)


def _terms(
    touched: NDArray[np.int64], step: int, rates: Sequence[float], betas: BetaPair
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """a_j, b_j and which of them there are, [groups, steps] each."""
    j = np.arange(1, betas.horizon + 1, dtype=np.float64)
    at = touched[:, None] + np.arange(1, betas.horizon + 1)
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


def _interpolated(
    weights: NDArray[np.float64], x: NDArray[np.float64], angles: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weights at Chebyshev nodes that give the same sums as `weights` at `x` for smooth functions, [groups, nodes].

    A weight at a node is the sum over k of 2 / nodes (1 for k = 0) * T_k(node) * sum_j weights_j T_k(x_j).
    """
    nodes = len(angles)
    found = np.zeros((len(weights), nodes))
    before, now = x, np.ones_like(x)  # T_-1 and T_0
    for k in range(nodes):
        moment = (weights * now).sum(axis=1, keepdims=True)
        found += moment * ((2 if k else 1) / nodes * np.cos(k * angles))
        before, now = now, 2 * x * now - before
    return found
