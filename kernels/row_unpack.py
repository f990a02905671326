"""Packed unique rows and an inverse index -> embeddings."""

from __future__ import annotations

import torch
from torch import Tensor


def row_unpack(unique: Tensor, inverse: Tensor, row_format: str, dim: int) -> Tensor:
    """Decode rows and expand them to the positions that asked for them.

    `out[i] = decode(unique[inverse[i]])`; a `fp8_e4m3_ue8m0` row is `dim` e4m3 values followed by one
    scale byte b for each 32 of them, value * 2**(b - 127).

    Args:
        unique: [U, row_bytes] uint8.
        inverse: [...] int64 indices into `unique`.
        row_format: "bf16", "fp32" or "fp8_e4m3_ue8m0".
        dim: values in a row.

    Returns:
        [..., dim] fp32.
    """
    decoded = _decode(unique, row_format, dim)
    return decoded[inverse.reshape(-1)].reshape(*inverse.shape, dim)


def _decode(packed: Tensor, row_format: str, dim: int) -> Tensor:
    if row_format == "bf16":
        return packed.view(torch.bfloat16).float()
    if row_format == "fp32":
        return packed.view(torch.float32).clone()
    if row_format != "fp8_e4m3_ue8m0":
        raise ValueError(f"row_format: {row_format!r} is unknown; use bf16, fp32 or fp8_e4m3_ue8m0")
    values = packed[:, :dim].contiguous().view(torch.float8_e4m3fn).float()
    scales = torch.exp2(packed[:, dim:].float() - 127.0)
    return (values.unflatten(-1, (-1, 32)) * scales[..., None]).flatten(-2)
