"""Quantised weights: which forms are supported, which tensors are scales, and how weights are restored.

A weight in fp8 (arXiv 2209.05433) has a tensor of scales beside it, one scale for the whole matrix, for each output
channel, or for each block of rows and columns; what it stands for is the product. Weights in wider types stand for
themselves, whether or not there is such a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from reasoning.architectures.weights import Shape
from reasoning.checkpoint.files import StoredTensor
from reasoning.config.checks import is_whole, require, shortened

_WIDE = ("F64", "F32", "F16", "BF16")
_FP8 = ("F8_E4M3", "F8_E5M2")
_SCALE_TYPES = (*_WIDE, "F8_E8M0")
_WEIGHT = ".weight"
# Of DeepSeek-V3's blocks, of scales a tensor or a channel, and of DeepSeek-V4.1's blocks; then of stacked experts.
_SCALES = (".weight_scale_inv", ".weight_scale", ".scale")
_STACKED_SCALES = ("_scale_inv", "_scale")
_ACTIVATION_SCALES = (".input_scale", ".activation_scale", "_activation_scale")
_ACCEPTED = "'fp8' with dynamic activations, or weights that are not quantised"

Block = tuple[int, int]
"""Rows and columns that share a scale."""


@dataclass(frozen=True)
class Quantisation:
    """What `quantization_config` of config.json says of the weights; the tensors' types decide which are quantised."""

    block: Block | None = None
    """Rows and columns of a block; None where it does not say."""

    @classmethod
    def from_config(cls, raw: Mapping[str, Any]) -> Quantisation:
        """Read a `config.json`.

        Raises:
            ValueError: weights are quantised in a way that is not supported.
        """
        config = raw.get("quantization_config") or {}
        require(isinstance(config, dict), "quantization_config", config, "an object")
        block = config.get("weight_block_size")
        method = config.get("quant_method", "fp8" if "weight_block_size" in config or not config else None)
        scheme = config.get("activation_scheme") or "dynamic"
        if method != "fp8" or scheme != "dynamic":
            kind = shortened(method) if method != "fp8" else f"'fp8' with activation_scheme {shortened(scheme)}"
            raise ValueError(f"quantization_config: quantisation {kind} is not supported; expected {_ACCEPTED}")
        if block is None:
            return cls()
        whole = isinstance(block, list) and len(block) == 2 and all(is_whole(size, 1) for size in block)
        if not whole:
            what = f"weight_block_size {shortened(block)}"
            raise ValueError(f"quantization_config: {what} is not supported; expected [rows, columns]")
        return cls((block[0], block[1]))

    def check(self, weight: StoredTensor, shape: Shape, stored: Mapping[str, StoredTensor]) -> None:
        """Check by the headers that a tensor can be read as a weight of some shape.

        Raises:
            ValueError: it has another shape, its type holds no weights, or its scales are missing or do not fit.
        """
        name = weight.name
        if weight.shape != shape:
            wanted = f"config.json asks for {shape}; do they belong together?"
            raise ValueError(f"checkpoint: tensor {name} has shape {weight.shape}, {wanted}")
        if weight.dtype in _WIDE:
            return
        if weight.dtype not in _FP8:
            kinds = f"{', '.join(_WIDE)}, or {' or '.join(_FP8)} with scales"
            raise ValueError(f"checkpoint: tensor {name} is stored as {weight.dtype}, but weights are {kinds}")
        scale = stored.get(scale_of(name, stored) or "")
        if scale is None:
            raise ValueError(f"checkpoint: tensor {name} is fp8 but {_scale_names(name)[0]} is absent; copy every file")
        if scale.dtype not in _SCALE_TYPES:
            kinds = ", ".join(_SCALE_TYPES)
            raise ValueError(f"checkpoint: tensor {scale.name} is stored as {scale.dtype}, but scales are {kinds}")
        if self._block_of(weight.shape, scale.shape) is None:
            shapes = f"shape {weight.shape} and its scales {scale.shape}"
            raise ValueError(f"checkpoint: tensor {name} has {shapes}, which fit no block size; is the file damaged?")

    def read(self, weight: StoredTensor, stored: Mapping[str, StoredTensor]) -> Tensor:
        """Return a weight that was checked: as it is stored, or restored to fp32."""
        if weight.dtype in _WIDE:
            return weight.read()
        scale = stored[scale_of(weight.name, stored) or ""]
        block = self._block_of(weight.shape, scale.shape)
        assert block is not None, "scales are checked first"
        return restore(weight.read(), scale.read(), block)

    def _block_of(self, weight: Shape, scale: Shape) -> Block | None:
        """Return the block that explains the shape of the scales.

        That is the configured one. Where it is absent or does not fit, as for tensors with blocks of their own, it is
        the whole matrix, a square whose side is a power of two, or a row, which is an output channel.
        """
        if len(weight) < 2 or 0 in weight:
            return None
        whole, channel = weight[-2:], (1, weight[-1])
        if math.prod(scale) == 1 and len(weight) == 2:
            return whole[0], whole[1]
        blocks = (self.block, _square(weight, scale), channel)
        shapes = {_scales_shape(weight, block): block for block in reversed(blocks) if block is not None}
        return shapes.get(scale) or shapes.get((*scale, 1))


def scale_of(name: str, stored: Container[str]) -> str | None:
    """Return the name of the tensor that holds a weight's scales; None if there is none."""
    return next((scale for scale in _scale_names(name) if scale in stored), None)


def activation_scale(name: str) -> bool:
    """Whether a tensor is a scale of activations, measured beforehand, which weights alone cannot be read by."""
    return name.endswith(_ACTIVATION_SCALES)


def restore(weight: Tensor, scale: Tensor, block: Block) -> Tensor:
    """Multiply the blocks of a matrix [..., m, n] by scales [..., ceil(m / rows), ceil(n / columns)]; returns fp32."""
    rows, columns = weight.shape[-2:]
    counts = -(-rows // block[0]), -(-columns // block[1])
    full = scale.float().reshape(*weight.shape[:-2], *counts)
    for axis, size, count in ((-2, block[0], counts[0]), (-1, block[1], counts[1])):
        full = full.repeat_interleave(size, axis) if count > 1 else full
    return weight.float() * full[..., :rows, :columns]


def _scale_names(name: str) -> list[str]:
    """Names that the scales of a weight may have."""
    if name.endswith(_WEIGHT):
        return [name.removesuffix(_WEIGHT) + end for end in _SCALES]
    return [name + end for end in _STACKED_SCALES]


def _square(weight: Shape, scale: Shape) -> Block | None:
    """Return the square block that explains a shape: an axis cut in two or more shows over half of it."""
    if len(scale) != len(weight) or 0 in scale:
        return None
    size = max(-(-size // count) for size, count in zip(weight[-2:], scale[-2:], strict=True))
    return (1 << (size - 1).bit_length(),) * 2


def _scales_shape(weight: Shape, block: Block) -> Shape:
    return (*weight[:-2], *(-(-size // part) for size, part in zip(weight[-2:], block, strict=True)))
