"""Feed-forward layers: SwiGLU, and the mixture of experts of DeepSeek-V3 (arXiv 2412.19437, section 2.1.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reasoning.config import ModelConfig


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) over the last dimension."""

    def __init__(self, hidden: int, width: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[T, hidden] -> [T, hidden]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Router(nn.Module):
    """Sigmoid scores; a correction bias decides who is chosen but not with what weight; groups limit the choice."""

    e_score_correction_bias: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.top, self.groups, self.top_groups = config.num_experts_per_tok, config.n_group, config.topk_group
        self.normalise, self.scaling = config.norm_topk_prob, config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights [T, top] in fp32 and expert ids [T, top] for x [T, hidden]."""
        scores = F.linear(x.float(), self.weight.float()).sigmoid()
        chosen = self._eligible(scores + self.e_score_correction_bias).topk(self.top, dim=-1).indices
        weights = scores.gather(1, chosen)
        if self.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * self.scaling, chosen

    def _eligible(self, scores: Tensor) -> Tensor:
        """Rule out experts beyond the best groups, a group being as good as its two best experts together."""
        if self.top_groups == self.groups:
            return scores
        grouped = scores.unflatten(-1, (self.groups, -1))
        strength = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
        best = strength.topk(self.top_groups, dim=-1).indices
        out = torch.ones_like(strength, dtype=torch.bool).scatter_(1, best, False)
        return grouped.masked_fill(out[..., None], float("-inf")).flatten(-2)


class MixtureOfExperts(nn.Module):
    """Routed experts plus shared experts that every token visits."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        hidden, width, experts = config.hidden_size, config.moe_intermediate_size, config.n_routed_experts
        self.gate = Router(config)
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down = nn.Parameter(torch.empty(experts, hidden, width))
        self.shared_experts = SwiGLU(hidden, width * config.n_shared_experts) if config.n_shared_experts else None
        self.load: Tensor | None = None  # tokens each expert got in the last forward pass

    def forward(self, x: Tensor) -> Tensor:
        """[T, hidden] -> [T, hidden]."""
        weights, chosen = self.gate(x)
        routed = self._experts(x, weights, chosen)
        return routed if self.shared_experts is None else routed + self.shared_experts(x)

    def _experts(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Sort the (token, choice) pairs by expert, so that each expert's matrices meet all its tokens at once."""
        order = chosen.flatten().argsort(stable=True)
        self.load = torch.bincount(chosen.flatten(), minlength=len(self.down))
        ends = self.load.cumsum(0, dtype=torch.int32)
        inner = F.grouped_mm(x.index_select(0, order // chosen.shape[1]), self.gate_up.transpose(1, 2), offs=ends)
        gate, up = inner.chunk(2, dim=-1)
        out = F.grouped_mm(F.silu(gate) * up, self.down.transpose(1, 2), offs=ends)
        by_token = out.index_select(0, order.argsort()).unflatten(0, chosen.shape)
        return torch.einsum("tk,tkd->td", weights.to(x.dtype), by_token)
