"""The mixture of experts of DeepSeek-V3 (arXiv 2412.19437, section 2.1.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.grouped_gemm import grouped_linear, grouped_swiglu, rounded_for
from kernels.moe_combine import moe_combine
from kernels.moe_route import moe_route
from kernels.routing import RouteRule, Routing
from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.model.swiglu import SwiGLU


class Router(nn.Module):
    """Sigmoid scores of experts; a correction bias affects which are chosen but not their weights."""

    e_score_correction_bias: Tensor

    def __init__(self, config: DeepseekV3Config):
        super().__init__()
        self.rule = RouteRule(
            top=config.num_experts_per_tok,
            groups=config.n_group,
            top_groups=config.topk_group,
            normalise=config.norm_topk_prob,
            scaling=config.routed_scaling_factor,
        )
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts))

    def forward(self, x: Tensor) -> Routing:
        """Choose experts for the tokens x [T, hidden], scored by a product in fp32."""
        return moe_route(F.linear(x.float(), self.weight.float()), self.e_score_correction_bias, self.rule)


class MixtureOfExperts(nn.Module):
    """Routed experts, plus shared experts that every token visits."""

    multiplied = ("gate_up", "down")
    """Names of the parameters that inputs are multiplied with, which `reasoning.model.cpu_weights` rearranges."""

    def __init__(self, config: DeepseekV3Config):
        super().__init__()
        hidden, width, experts = config.hidden_size, config.moe_intermediate_size, config.n_routed_experts
        self.gate = Router(config)
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down = nn.Parameter(torch.empty(experts, hidden, width))
        self.shared_experts = SwiGLU(hidden, width * config.n_shared_experts) if config.n_shared_experts else None
        self.load: Tensor | None = None  # [E] tokens of each expert in the last forward pass

    def forward(self, x: Tensor) -> Tensor:
        """[T, hidden] -> [T, hidden]."""
        routing = self.gate(x)
        self.load = routing.counts
        routing = rounded_for(x, routing)
        inner = grouped_swiglu(x, self.gate_up, routing)
        routed = moe_combine(grouped_linear(inner, self.down, routing.counts, routing.each), routing)
        return routed if self.shared_experts is None else routed + self.shared_experts(x)
