"""How matrices lie in memory for a CPU: input-major, or in the order in which oneDNN multiplies with them.

Both orders leave what a model computes as it is. The first one costs nothing when a model is loaded and keeps its
weights readable; the second is for a model that is only read.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

_LARGE = 1 << 22
"""Values of a matrix from which on oneDNN's order is worth more than the call costs, also where MKL does fp32."""


@torch.no_grad()
def order_for_cpu(model: nn.Module) -> None:
    """Make each matrix [..., out, in] a transposed view of memory in the order [..., in, out]; shapes and values stay.

    `x @ weight.T` then reads both operands in memory order, which MKL's matrix product need not rearrange first: that
    makes the 32 tokens of a decoding step half as fast again, and changes nothing for the 2,000 of a prompt. On the
    meta device this is free, and the memory given to the model later keeps the order.

    Matrices are those of linear layers, unless an embedding reads their rows too, and the parameters that a module's
    class names in `multiplied`.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for matrix in _matrices(model):
        if id(matrix) not in embeddings:
            matrix.data = matrix.data.transpose(-1, -2).contiguous().transpose(-1, -2)


def _matrices(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        names = ("weight",) if isinstance(module, nn.Linear) else getattr(type(module), "multiplied", ())
        yield from (module.get_parameter(name) for name in names)


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


def pack_for_cpu(model: nn.Module) -> None:
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
