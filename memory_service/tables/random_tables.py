"""Tables of seeded random rows of any size, for load tests; each block can be regenerated alone for comparison."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from memory_service.tables.rows import RowFormat
from memory_service.tables.spec import TableSpec

# dtype, mask of the random bits, fixed bits: any sign, any mantissa, magnitudes from 2**-7 to below 2.
_FLOAT_BITS = {RowFormat.BF16: ("<u2", 0x83FF, 0x3C00), RowFormat.FP32: ("<u4", 0x83FF_FFFF, 0x3C00_0000)}
_NAN_CODE = 0x7F  # NaN in e4m3fn, without the sign bit
_MIN_SCALE = 112  # 2**-15; the largest is 2**-8, so that no value exceeds 448 * 2**-8 = 1.75


def random_block(spec: TableSpec, block: int, seed: int = 0) -> NDArray[np.uint8]:
    """Generate the packed rows of one block: finite values with magnitude below 2.

    Args:
        spec: the table.
        block: number of the block.
        seed: not negative; the rows depend on seed, layer and block number only.

    Returns:
        uint8 [rows of the block, row_bytes].

    Raises:
        ValueError: the seed is negative.
    """
    if seed < 0:
        raise ValueError(f"seed={seed} is not possible: use 0 or more")
    shape = (spec.block_length(block), spec.row_bytes)
    generator = np.random.Generator(np.random.SFC64([seed, spec.layer, block]))
    words = generator.integers(0, 1 << 64, -(-shape[0] * shape[1] // 8), np.uint64)
    packed = words.view(np.uint8)[: shape[0] * shape[1]].reshape(shape)
    if spec.row_format is RowFormat.FP8_E4M3_UE8M0:
        values, scales = packed[:, : spec.dim], packed[:, spec.dim :]
        values -= ((values & _NAN_CODE) == _NAN_CODE).view(np.uint8)
        scales[:] = (scales & 7) + _MIN_SCALE
    else:
        dtype, mask, fixed = _FLOAT_BITS[spec.row_format]
        bits = packed.view(dtype)
        bits[:] = (bits & mask) | fixed
    return packed


def random_blocks(spec: TableSpec, seed: int = 0) -> Iterator[NDArray[np.uint8]]:
    """Generate all blocks of a table in order, one at a time; see `random_block`."""
    return (random_block(spec, block, seed) for block in range(spec.blocks))
