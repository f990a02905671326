"""How weights lie in memory: input-major, which a CPU multiplies a few tokens with half as fast again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reasoning.architectures.deepseek_v3.backbone import Transformer
from reasoning.architectures.deepseek_v3.moe import MixtureOfExperts


@torch.no_grad()
def lay_out_for_cpu(model: Transformer) -> None:
    """Make each matrix [out, in] a transposed view of memory in the order [in, out]; shapes and values stay.

    `x @ weight.T` then reads both operands in memory order, which MKL's matrix product need not rearrange first: that
    counts when a matrix meets the 32 tokens of a decoding step, and changes nothing for the 2,000 of a prompt. On the
    meta device this is free, and the memory given to the model later keeps the order.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight is not model.embed_tokens.weight:
            module.weight.data = _input_major(module.weight)
        elif isinstance(module, MixtureOfExperts):
            module.gate_up.data, module.down.data = _input_major(module.gate_up), _input_major(module.down)


def _input_major(weight: Tensor) -> Tensor:
    return weight.data.transpose(-1, -2).contiguous().transpose(-1, -2)
