"""Packed unique rows and an inverse index -> embeddings; decoded rows with gradients summed by row."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import use_triton


def row_unpack(
    unique: Tensor, inverse: Tensor, row_format: str, dim: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Decode unique rows and expand them to positions.

    `out[i] = decode(unique[inverse[i]])`; a `fp8_e4m3_ue8m0` row is `dim` e4m3 values followed by one
    scale byte b for each 32 of them, value * 2**(b - 127).

    Args:
        unique: [U, row_bytes] uint8.
        inverse: [...] int64 indices into `unique`.
        row_format: "bf16", "fp32" or "fp8_e4m3_ue8m0".
        dim: values in a row.
        dtype: of the result; decoding is exact, and rounded once where this is narrower.

    Returns:
        [..., dim] in `dtype`.
    """
    if row_format not in ("bf16", "fp32", "fp8_e4m3_ue8m0"):
        raise ValueError(f"row_format: {row_format!r} is unknown; use bf16, fp32 or fp8_e4m3_ue8m0")
    if use_triton(unique, inverse):
        from kernels.gpu.row_unpack import row_unpack as unpack

        return unpack(unique, inverse, row_format, dim, dtype)
    decoded = _decode(unique, row_format, dim).to(dtype)
    return decoded[inverse.reshape(-1)].reshape(*inverse.shape, dim)


def row_expand(rows: Tensor, inverse: Tensor) -> Tensor:
    """Expand decoded rows to positions: `out[i] = rows[inverse[i]]`.

    Differentiable in `rows`: each row's gradient is the sum over its positions, always taken in the same order.

    Args:
        rows: [U, dim].
        inverse: [...] int64 indices into `rows`.

    Returns:
        [..., dim] in the dtype of `rows`.
    """
    if use_triton(rows, inverse):
        from kernels.gpu.row_unpack import RowExpand

        return RowExpand.apply(rows, inverse)
    return F.embedding(inverse, rows)


def _decode(packed: Tensor, row_format: str, dim: int) -> Tensor:
    if row_format == "bf16":
        return packed.view(torch.bfloat16).float()
    if row_format == "fp32":
        return packed.view(torch.float32)
    values = packed[:, :dim].contiguous().view(torch.float8_e4m3fn).float()
    scales = torch.exp2(packed[:, dim:].float() - 127.0)
    return (values.unflatten(-1, (-1, 32)) * scales[..., None]).flatten(-2)
