"""Weighted sum of the outputs of each token's experts."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.dispatch import use_triton
from kernels.routing import Routing


def moe_combine(visits: Tensor, routing: Routing) -> Tensor:
    """Return y[t] = sum over k of weights[t, k] * visits[position[t, k]], added up in fp32. Differentiable.

    Args:
        visits: [T * top, d], a row a pair, in the order of `routing.order`.
        routing: of T tokens.

    Returns:
        [T, d] in the dtype of `visits`.
    """
    if use_triton(visits, routing.weights):
        from kernels.gpu.moe_combine import MoeCombine

        return MoeCombine.apply(visits, routing.weights, routing.position)
    by_token = visits.index_select(0, routing.position.flatten()).unflatten(0, routing.position.shape)
    return torch.bmm(routing.weights[:, None], by_token.float())[:, 0].to(visits.dtype)
