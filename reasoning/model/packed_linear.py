"""Matrices in the order in which oneDNN multiplies with them, rearranged once, for a model that is only read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LARGE = 1 << 22
"""Values of a matrix from which on its own order costs more than the call, also where MKL does fp32."""


class PackedLinear(nn.Module):
    """What a linear layer without bias computes on a CPU. Its weight can neither be read nor saved."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        assert linear.bias is None, "the backbone's linear layers have no bias"
        # The operators that torch's own compiler freezes linear layers to.
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), None)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, None, "none", [], "")


def pack_linears(model: nn.Module) -> None:
    """Replace linear layers on the CPU where that pays: in bf16 all of them, in fp32 those with large matrices.

    A matrix that is also the embedding's is copied, others are freed as soon as they are packed.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and _pays(child.weight):
                setattr(module, name, PackedLinear(child))


def _pays(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32 and weight.numel() >= _LARGE
