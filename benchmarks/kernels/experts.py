"""Rows of the mixture of experts: `moe_route`, `grouped_swiglu`, `grouped_linear` and `moe_combine`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.kernels.case import Case, Results
from kernels.grouped_gemm import grouped_linear, grouped_swiglu
from kernels.moe_combine import moe_combine
from kernels.moe_route import moe_route
from kernels.routing import RouteRule, Routing


@dataclass(frozen=True)
class Mixture:
    """The experts of one layer on one GPU."""

    model: str
    experts: int
    hidden: int
    width: int
    rule: RouteRule

    def route(self, device: torch.device, tokens: int) -> Routing:
        """Routing of random tokens."""
        return moe_route(*self.scored(device, tokens))

    def scored(self, device: torch.device, tokens: int) -> tuple[Tensor, Tensor, RouteRule]:
        """Arguments of `moe_route`."""
        return torch.randn(tokens, self.experts, device=device), torch.zeros(self.experts, device=device), self.rule


SHIPPED = Mixture("shipped model", 8, 256, 96, RouteRule(2))
LITE = Mixture("V2-Lite", 64, 2048, 1408, RouteRule(6))
V3 = Mixture("V3", 256, 7168, 2048, RouteRule(8, groups=8, top_groups=4, scaling=2.5))
V3_SHARE = Mixture("V3 on one of 8 GPUs", 32, 7168, 2048, RouteRule(8))


def _bf16(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, device=device, dtype=torch.bfloat16) / shape[-1] ** 0.5


def _weights(logits: Tensor, bias: Tensor, rule: RouteRule) -> Tensor:
    """Only the weights: where scores differ by a rounding, order and experts may differ from the reference."""
    return moe_route(logits, bias, rule).weights


def _routing_bytes(arguments: tuple[Tensor, Tensor, RouteRule], results: Results) -> int:
    """Logits in; weights, experts, order and position out."""
    return 4 * arguments[0].numel() + (4 + 3 * 8) * results[0].numel()


def _route_case(mixture: Mixture, tokens: int, gradient: bool = False) -> Case:
    shape = f"{mixture.model}, {mixture.rule.top} of {mixture.experts}"
    if gradient:
        return Case("moe_route", shape, _weights, mixture.scored, tokens, (0,))
    return Case("moe_route", shape, _weights, mixture.scored, tokens, moved=_routing_bytes)


def _swiglu_case(mixture: Mixture, tokens: int, gradient: bool = False) -> Case:
    def make(device: torch.device, count: int) -> tuple[Tensor, Tensor, Routing]:
        weight = _bf16(device, mixture.experts, 2 * mixture.width, mixture.hidden)
        return _bf16(device, count, mixture.hidden), weight, mixture.route(device, count)

    return _product_case("grouped_swiglu", mixture, grouped_swiglu, make, 2 * mixture.width, tokens, gradient)


def _linear_case(mixture: Mixture, tokens: int, gradient: bool = False) -> Case:
    def make(device: torch.device, count: int) -> tuple[Tensor, Tensor, Tensor]:
        x = _bf16(device, count * mixture.rule.top, mixture.width)
        weight = _bf16(device, mixture.experts, mixture.hidden, mixture.width)
        return x, weight, mixture.route(device, count).counts

    return _product_case("grouped_linear", mixture, grouped_linear, make, mixture.width, tokens, gradient)


def _product_case(kernel, mixture, function, make, size, tokens, gradient) -> Case:  # type: ignore[no-untyped-def]
    def flops(count: int) -> int:
        return (4 if gradient else 2) * count * mixture.rule.top * mixture.hidden * size

    shape = f"{mixture.model} {mixture.experts} x {mixture.hidden} x {mixture.width}"
    return Case(kernel, shape, function, make, tokens, (0, 1) if gradient else (), flops)


def _combine(visits: Tensor, weights: Tensor, position: Tensor, routing: Routing) -> Tensor:
    return moe_combine(visits, replace(routing, weights=weights, position=position))


def _combine_case(mixture: Mixture, tokens: int, gradient: bool = False) -> Case:
    def make(device: torch.device, count: int) -> tuple[Tensor, Tensor, Tensor, Routing]:
        routing = mixture.route(device, count)
        return _bf16(device, count * mixture.rule.top, mixture.hidden), routing.weights, routing.position, routing

    shape = f"{mixture.model} {mixture.rule.top} x {mixture.hidden}"
    return Case("moe_combine", shape, _combine, make, tokens, (0, 1) if gradient else ())


CASES = (
    *(_route_case(mixture, tokens) for mixture in (SHIPPED, LITE, V3) for tokens in (64, 8192)),
    *(_route_case(mixture, 8192, gradient=True) for mixture in (SHIPPED, V3)),
    *(_swiglu_case(mixture, tokens) for mixture in (SHIPPED, LITE, V3_SHARE) for tokens in (64, 4096)),
    *(_swiglu_case(mixture, 4096, gradient=True) for mixture in (SHIPPED, LITE)),
    *(_linear_case(mixture, tokens) for mixture in (SHIPPED, LITE, V3_SHARE) for tokens in (64, 4096)),
    *(_linear_case(mixture, 4096, gradient=True) for mixture in (SHIPPED, LITE)),
    *(_combine_case(mixture, 4096) for mixture in (SHIPPED, LITE, V3)),
    *(_combine_case(mixture, 4096, gradient=True) for mixture in (SHIPPED, LITE)),
)
