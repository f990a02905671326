"""Grouped matrix products: the rows of each expert, which lie together, times that expert's matrix."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import use_triton
from kernels.routing import Routing

_FEW = 64
"""Rows of an expert up to which reading its matrix takes longer than multiplying with it."""


def grouped_swiglu(x: Tensor, gate_up: Tensor, routing: Routing) -> Tensor:
    """Return silu(gate_e x_t) * (up_e x_t) for every pair (t, e), sorted by expert. Differentiable.

    Args:
        x: [T, d].
        gate_up: [E, 2 * width, d], gate above up.
        routing: of the T tokens among E experts, some of which may get none.

    Returns:
        [T * top, width] in the dtype of `x`, rows in the order of `routing.order`; products accumulate in fp32.
    """
    if use_triton(x, gate_up):
        from kernels.gpu.grouped_gemm import GroupedSwiglu

        keep = torch.is_grad_enabled() and (x.requires_grad or gate_up.requires_grad)
        return GroupedSwiglu.apply(x, gate_up, routing, keep)
    rows = x.index_select(0, routing.order // routing.experts.shape[1])
    gate, up = grouped_linear(rows, gate_up, routing.counts, routing.each).chunk(2, dim=-1)
    return F.silu(gate) * up


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor, each: int = 0) -> Tensor:
    """Return weight_e x for the rows of every expert e. Differentiable.

    Args:
        x: [rows, in]: first the rows of expert 0, then those of expert 1, and so on.
        weight: [E, out, in].
        counts: [E] int64, the rows of each expert; they add up to all rows.
        each: the number of every expert's rows, if the host knows that it is the same.

    Returns:
        [rows, out] in the dtype of `x`; products accumulate in fp32.
    """
    if use_triton(x, weight):
        from kernels.gpu.grouped_gemm import GroupedLinear

        return GroupedLinear.apply(x, weight, counts)
    if each:
        return torch.bmm(x.unflatten(0, (-1, each)), weight.transpose(1, 2)).flatten(0, 1)
    if any(size * weight.element_size() % 16 for size in weight.shape[1:]):  # which torch's product refuses
        parts = x.split(counts.tolist())
        return torch.cat([F.linear(part, weight[e]) for e, part in enumerate(parts) if len(part)])
    return F.grouped_mm(x, weight.transpose(1, 2), offs=counts.cumsum(0, dtype=torch.int32))


def rounded_for(x: Tensor, routing: Routing) -> Routing:
    """Return the routing by which products of the tokens x [T, d] are fastest, with the same results.

    On a CPU, where products are in less than fp32, numbers of rows are rounded up: torch prepares a product anew for
    every number of rows, which takes longer than the product. Elsewhere the routing is returned as it is.
    """
    return round_up(routing) if x.device.type == "cpu" and _in_less_than_fp32(x) else routing


def _in_less_than_fp32(x: Tensor) -> bool:
    """Whether products with `x` on a CPU are: by its dtype, by autocast, or by torch's setting for fp32."""
    reduced = torch.is_autocast_enabled("cpu") or torch.get_float32_matmul_precision() != "highest"
    return x.dtype != torch.float32 or reduced


def round_up(routing: Routing) -> Routing:
    """Return the same pairs padded with idle rows, so that numbers of rows repeat from step to step.

    While the experts have few rows all get equally many, and one batched product serves them all. An idle row repeats
    the first pair, and no `position` points to it.
    """
    most = int(routing.counts.max())
    few = most <= _FEW and 2 * int(routing.counts.count_nonzero()) >= len(routing.counts)
    step = _FEW if most > _FEW else _FEW // 4
    counts = (torch.full_like(routing.counts, most) if few else routing.counts) + step - 1
    counts -= counts % step
    idle = counts - routing.counts
    position = routing.position + (idle.cumsum(0) - idle)[routing.experts]
    order = routing.order.new_zeros(int(counts.sum()))
    order[position.flatten()] = torch.arange(position.numel())
    return replace(routing, counts=counts, order=order, position=position, each=int(counts[0]) if few else 0)
