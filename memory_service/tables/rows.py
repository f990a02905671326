"""Row formats: packing of one column's vector into bytes and back. The rest of the memory service only moves bytes."""

from __future__ import annotations

from enum import Enum

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

FP8_GROUP = 32  # values that share one ue8m0 scale
_SCALE_BIAS = 127


class RowFormat(str, Enum):
    """The row formats. The value is the name used in configs, manifests and on the wire."""

    FP8_E4M3_UE8M0 = "fp8_e4m3_ue8m0"
    BF16 = "bf16"
    FP32 = "fp32"

    def row_bytes(self, dim: int) -> int:
        """Bytes of one packed row of `dim` values.

        Raises:
            ValueError: the format cannot hold rows of `dim` values.
        """
        if dim <= 0:
            raise ValueError(f"dim={dim} must be at least 1")
        if self is RowFormat.BF16:
            return 2 * dim
        if self is RowFormat.FP32:
            return 4 * dim
        if dim % FP8_GROUP:
            raise ValueError(f"dim={dim} does not fit row format {self.value}: use a multiple of {FP8_GROUP}, or bf16")
        return dim + dim // FP8_GROUP


def pack_rows(values: np.ndarray, row_format: RowFormat | str) -> NDArray[np.uint8]:
    """Pack rows, rounding to nearest even.

    Args:
        values: float32 [n, dim].
        row_format: format of the packed rows.

    Returns:
        uint8 [n, row_bytes].

    Raises:
        ValueError: dtype or shape is wrong, or a row, which the message names, holds a value that is not finite or that
            the format cannot represent.
    """
    row_format = RowFormat(row_format)
    if values.ndim != 2 or values.dtype != np.float32:
        raise ValueError(f"values must be float32 [n, dim], got {values.dtype} {list(values.shape)}")
    row_bytes = row_format.row_bytes(values.shape[1])
    values = np.ascontiguousarray(values)
    if row_format is RowFormat.FP8_E4M3_UE8M0:
        _require_finite(values)
        return _pack_fp8(values)
    with np.errstate(over="ignore"):  # a finite value beyond bf16's range becomes inf, which is refused below
        packed = values.astype(ml_dtypes.bfloat16) if row_format is RowFormat.BF16 else values.copy()
    _require_finite(packed)
    return packed.view(np.uint8).reshape(len(values), row_bytes)


def unpack_rows(packed: NDArray[np.uint8], row_format: RowFormat | str, dim: int) -> NDArray[np.float32]:
    """Unpack rows. This is the reference for every kernel.

    Args:
        packed: uint8 [n, row_bytes].
        row_format: format of the packed rows.
        dim: number of values in a row.

    Returns:
        float32 [n, dim].

    Raises:
        ValueError: dtype or shape of `packed` is wrong, or the format cannot hold rows of `dim` values.
    """
    row_format = RowFormat(row_format)
    row_bytes = row_format.row_bytes(dim)
    if packed.ndim != 2 or packed.dtype != np.uint8 or packed.shape[1] != row_bytes:
        raise ValueError(f"packed must be uint8 [n, {row_bytes}], got {packed.dtype} {list(packed.shape)}")
    packed = np.ascontiguousarray(packed)
    if row_format is RowFormat.FP8_E4M3_UE8M0:
        return _unpack_fp8(packed, dim)
    dtype = ml_dtypes.bfloat16 if row_format is RowFormat.BF16 else np.float32
    return packed.view(dtype).astype(np.float32)


def _pack_fp8(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    n, dim = values.shape
    groups = values.reshape(n, dim // FP8_GROUP, FP8_GROUP)
    scale_bytes = _scale_bytes(np.abs(groups).max(axis=-1))
    scaled = np.ldexp(groups, _SCALE_BIAS - scale_bytes[..., None].astype(np.int32))
    packed = np.empty((n, dim + dim // FP8_GROUP), np.uint8)
    packed[:, :dim] = scaled.astype(ml_dtypes.float8_e4m3fn).view(np.uint8).reshape(n, dim)
    packed[:, dim:] = scale_bytes
    return packed


def _scale_bytes(amax: NDArray[np.float32]) -> NDArray[np.uint8]:
    """clamp(ceil(log2(amax / 448)) + 127, 0, 254), and 127 where amax is 0, without rounding a logarithm.

    448 = 0.875 * 2**9, and amax = m * 2**e with m in [0.5, 1), so the ceiling is e - 9, plus 1 if m > 0.875. No finite
    amax needs more than the largest scale, so no value saturates.
    """
    mantissa, exponent = np.frexp(amax)
    scale = exponent - 9 + (mantissa > 0.875) + _SCALE_BIAS
    return np.where(amax == 0, _SCALE_BIAS, np.clip(scale, 0, 254)).astype(np.uint8)


def _unpack_fp8(packed: NDArray[np.uint8], dim: int) -> NDArray[np.float32]:
    values = np.ascontiguousarray(packed[:, :dim]).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    scales = np.ascontiguousarray(packed[:, dim:]).view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    return (values.reshape(len(packed), dim // FP8_GROUP, FP8_GROUP) * scales[..., None]).reshape(len(packed), dim)


def _require_finite(values: np.ndarray) -> None:
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise ValueError(f"row {row} holds a value that is not finite in {values.dtype}: clean it before packing")
