"""Tables of seeded random rows, of any size, for load tests: every block can be made again by itself, to compare."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from memory_service.tables.rows import RowFormat
from memory_service.tables.spec import TableSpec

# Random bits below these masks, with the fixed bits: any sign, any mantissa, magnitudes from 2**-7 to below 2.
_FLOAT_BITS = {RowFormat.BF16: ("<u2", 0x83FF, 0x3C00), RowFormat.FP32: ("<u4", 0x83FF_FFFF, 0x3C00_0000)}
_NAN_CODE = 0x7F  # of e4m3fn, whatever the sign
_LEAST_SCALE = 112  # 2**-15, so that no value exceeds 448 * 2**-8 = 1.75


def random_block(spec: TableSpec, block: int, seed: int = 0) -> NDArray[np.uint8]:
    """Packed rows [n, row_bytes] of one block: finite values below 2, the same for the same seed, layer and block."""
    if seed < 0:
        raise ValueError(f"seed={seed} is not possible: use 0 or more")
    shape = (spec.block_length(block), spec.row_bytes)
    generator = np.random.Generator(np.random.SFC64([seed, spec.layer, block]))
    words = generator.integers(0, 1 << 64, -(-shape[0] * shape[1] // 8), np.uint64)
    packed = words.view(np.uint8)[: shape[0] * shape[1]].reshape(shape)
    if spec.row_format is RowFormat.FP8_E4M3_UE8M0:
        values, scales = packed[:, : spec.dim], packed[:, spec.dim :]
        values -= ((values & _NAN_CODE) == _NAN_CODE).view(np.uint8)
        scales[:] = (scales & 7) + _LEAST_SCALE
    else:
        dtype, mask, fixed = _FLOAT_BITS[spec.row_format]
        bits = packed.view(dtype)
        bits[:] = (bits & mask) | fixed
    return packed


def random_blocks(spec: TableSpec, seed: int = 0) -> Iterator[NDArray[np.uint8]]:
    """All blocks of a table in order, one at a time."""
    return (random_block(spec, block, seed) for block in range(spec.blocks))
