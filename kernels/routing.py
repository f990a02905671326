"""Rule and result of routing tokens to experts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class RouteRule:
    """Rule by which experts are chosen. By default they are not grouped."""

    top: int
    """Experts a token visits."""

    groups: int = 1
    """Groups of neighbouring experts, equally large."""

    top_groups: int = 1
    """Groups a token may choose from: those whose two best experts are best together."""

    normalise: bool = True
    """Whether a token's weights are normalised to add up to `scaling`."""

    scaling: float = 1.0
    """Factor of every weight."""


@dataclass(frozen=True)
class Routing:
    """Experts of T tokens. A *pair* is one token at one expert: pair `t * top + k` is token t at its k-th expert."""

    weights: Tensor
    """[T, top] fp32, by descending biased score; differentiable."""

    experts: Tensor
    """[T, top] int64, the expert of each pair."""

    counts: Tensor
    """[E] int64, the pairs of each expert."""

    order: Tensor
    """[T * top] int64: the pairs sorted by expert, within one by token."""

    position: Tensor
    """[T, top] int64, the inverse of `order`: where each pair stands in it."""

    each: int = 0
    """The number of every expert's pairs, where it is known to be the same."""
