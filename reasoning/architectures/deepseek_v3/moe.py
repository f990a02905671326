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
        self.logits: Tensor | None = None  # [T, E] of the last forward pass in training
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts))

    def forward(self, x: Tensor) -> Routing:
        """Choose experts for the tokens x [T, hidden], scored by a product in fp32."""
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.weight.float())
        self.logits = logits if self.training else None
        return moe_route(logits, self.e_score_correction_bias, self.rule)


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
        self.experts: Tensor | None = None  # [T, top] experts of each token in the last forward pass

    def forward(self, x: Tensor) -> Tensor:
        """[T, hidden] -> [T, hidden]."""
        routing = self.gate(x)
        self.load, self.experts = routing.counts, routing.experts
        routing = rounded_for(x, routing)
        inner = grouped_swiglu(x, self.gate_up, routing)
        routed = moe_combine(grouped_linear(inner, self.down, routing.counts, routing.each), routing)
        return routed if self.shared_experts is None else routed + self.shared_experts(x)

    def sequence_balance(self, sequences: int) -> Tensor:
        """Sequence-wise balance loss of the last forward pass in training, once (arXiv 2412.19437, equations 17 to 20).

        sum_i f_i P_i, averaged over the sequences: f_i is the share of the tokens that chose expert i relative to an
        even one, and P_i the mean over the tokens of its share of a token's scores. 1 if all experts are alike.

        Args:
            sequences: number of sequences, of equal length, in the pass.
        """
        logits, self.gate.logits = self.gate.logits, None
        assert logits is not None, "a forward pass in training comes first"
        assert self.experts is not None, "it has chosen experts"
        scores = logits.sigmoid().unflatten(0, (sequences, -1))
        shares = (scores / scores.sum(-1, keepdim=True)).mean(1)
        chosen = self.experts.reshape(sequences, -1)
        counts = torch.zeros_like(shares).scatter_add_(1, chosen, torch.ones_like(chosen, dtype=shares.dtype))
        return (counts * shares.shape[1] / chosen.shape[1] * shares).sum(1).mean()
