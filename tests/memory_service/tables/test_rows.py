from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from memory_service.tables.rows import RowFormat, pack_rows, unpack_rows

FP8 = RowFormat.FP8_E4M3_UE8M0
finite = arrays(np.float32, (3, 64), elements=st.floats(-(2.0**100), 2.0**100, width=32))


def every_e4m3_value() -> np.ndarray:
    values = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    return np.unique(values[np.isfinite(values)])


@pytest.mark.parametrize(("row_format", "expected"), [(FP8, 264), (RowFormat.BF16, 512), (RowFormat.FP32, 1024)])
def test_row_bytes_follow_from_format_and_dim(row_format: RowFormat, expected: int) -> None:
    assert row_format.row_bytes(256) == expected
    assert pack_rows(np.zeros((2, 256), np.float32), row_format).shape == (2, expected)


@pytest.mark.parametrize("dim", [0, -32, 33])
def test_a_dim_that_does_not_fit_is_named(dim: int) -> None:
    with pytest.raises(ValueError, match=f"dim={dim}"):
        FP8.row_bytes(dim)


@given(finite)
def test_packing_as_fp32_keeps_every_bit(values: np.ndarray) -> None:
    assert unpack_rows(pack_rows(values, "fp32"), "fp32", 64).tobytes() == values.tobytes()


@given(finite)
def test_packing_as_bf16_rounds_to_nearest_even(values: np.ndarray) -> None:
    bits = values.view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    assert pack_rows(values, "bf16").tobytes() == rounded.tobytes()
    assert unpack_rows(pack_rows(values, "bf16"), "bf16", 64).tobytes() == (rounded.astype(np.uint32) << 16).tobytes()


@settings(max_examples=30)
@given(finite)
def test_fp8_is_the_nearest_value_under_the_smallest_scale_that_fits(values: np.ndarray) -> None:
    packed = pack_rows(values, FP8)
    decoded = unpack_rows(packed, FP8, 64).reshape(-1, 32).astype(np.float64)
    codes = every_e4m3_value()
    for group, scale_byte, got in zip(values.reshape(-1, 32), packed[:, 64:].ravel(), decoded, strict=True):
        amax = float(np.abs(group).max())
        scale = math.ldexp(1.0, int(scale_byte) - 127)
        if amax == 0:
            assert scale_byte == 127
        else:
            assert amax <= 448 * scale
            assert amax > 448 * scale / 2 or scale_byte == 0
        nearest = np.abs(group.astype(np.float64)[:, None] / scale - codes).min(axis=1)
        np.testing.assert_array_equal(np.abs(group / np.float64(scale) - got / scale), nearest)


@pytest.mark.parametrize(
    ("amax", "scale_byte"),
    [(0.0, 127), (448.0, 127), (np.nextafter(np.float32(448), np.float32(500)), 128), (224.0, 126), (1e-45, 0)],
)
def test_fp8_scales_are_right_at_their_edges(amax: float, scale_byte: int) -> None:
    values = np.zeros((1, 32), np.float32)
    values[0, 5] = -amax
    assert pack_rows(values, FP8)[0, 32] == scale_byte


def test_the_largest_float32_does_not_saturate_fp8() -> None:
    values = np.full((1, 32), 3e38, np.float32)
    np.testing.assert_allclose(unpack_rows(pack_rows(values, FP8), FP8, 32), values, rtol=2**-4)


def test_packing_as_fp8_rounds_ties_to_even() -> None:
    values = np.zeros((1, 32), np.float32)
    values[0, :5] = [448, 17, 19, 2**-10, 3 * 2**-10]  # 16|18, 18|20, 0|2**-9, 2**-9|2**-8
    decoded = unpack_rows(pack_rows(values, FP8), FP8, 32)
    np.testing.assert_array_equal(decoded[0, :5], [448, 16, 20, 0, 2**-8])


def test_fp8_decodes_every_byte_under_every_scale() -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(8, 32)
    for scale_byte in (0, 1, 126, 127, 200, 245):
        packed = np.concatenate([codes, np.full((8, 1), scale_byte, np.uint8)], axis=1)
        expected = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64) * 2.0 ** (scale_byte - 127)
        np.testing.assert_array_equal(unpack_rows(packed, FP8, 32), expected.astype(np.float32))


@settings(max_examples=30)
@given(finite)
def test_fp8_packing_what_was_unpacked_changes_no_value(values: np.ndarray) -> None:
    decoded = unpack_rows(pack_rows(values, FP8), FP8, 64)
    np.testing.assert_array_equal(unpack_rows(pack_rows(decoded, FP8), FP8, 64), decoded)


@pytest.mark.parametrize("row_format", list(RowFormat))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_by_row(row_format: RowFormat, bad: float) -> None:
    values = np.zeros((5, 32), np.float32)
    values[3, 7] = bad
    with pytest.raises(ValueError, match="row 3"):
        pack_rows(values, row_format)


def test_a_value_beyond_bf16_is_refused() -> None:
    with pytest.raises(ValueError, match=r"row 0 .*bfloat16"):
        pack_rows(np.full((1, 2), np.finfo(np.float32).max), "bf16")


def test_wrong_dtypes_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="float64"):
        pack_rows(np.zeros((1, 32)), "fp32")
    with pytest.raises(ValueError, match=r"\[n, 66\]"):
        unpack_rows(np.zeros((1, 64), np.uint8), FP8, 64)


@pytest.mark.parametrize("row_format", list(RowFormat))
def test_an_array_without_rows_packs_and_unpacks(row_format: RowFormat) -> None:
    packed = pack_rows(np.empty((0, 64), np.float32), row_format)
    assert unpack_rows(packed, row_format, 64).shape == (0, 64)


def test_strided_values_pack_like_contiguous_ones() -> None:
    values = np.random.default_rng(0).normal(size=(8, 128)).astype(np.float32)
    np.testing.assert_array_equal(pack_rows(values[::2, ::2], FP8), pack_rows(values[::2, ::2].copy(), FP8))
