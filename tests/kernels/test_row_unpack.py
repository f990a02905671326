"""Every format and awkward size against the numpy decoder that defines the row formats."""

import numpy as np
import pytest
import torch

from kernels.row_unpack import row_unpack
from memory_service.rows import RowFormat, pack_rows, unpack_rows

FORMATS = [fmt.value for fmt in RowFormat]


def packed_rows(count, dim, row_format):
    rng = np.random.default_rng(count * 1000 + dim)
    values = rng.standard_normal((count, dim), np.float32) * np.exp2(rng.integers(-30, 30, (count, 1)))
    values[count // 2 :, ::3] = 0
    return pack_rows(values.astype(np.float32), row_format)


@pytest.mark.parametrize("row_format", FORMATS)
@pytest.mark.parametrize("dim", [32, 96, 256])
@pytest.mark.parametrize("positions", [(1,), (5,), (17, 3), (123, 24), (2, 5, 7)], ids=str)
def test_rows_decode_and_spread_as_the_reference(row_format, dim, positions):
    unique = packed_rows(17, dim, row_format)
    inverse = np.random.default_rng(0).integers(0, 17, positions)
    out = row_unpack(torch.from_numpy(unique), torch.from_numpy(inverse), row_format, dim)
    assert out.dtype == torch.float32
    assert np.array_equal(out.numpy(), unpack_rows(unique, row_format, dim)[inverse])


@pytest.mark.parametrize("row_format", ["bf16", "fp32"])
@pytest.mark.parametrize("dim", [1, 5, 17, 123])
@pytest.mark.parametrize("count", [1, 5, 123])
def test_dimensions_need_not_be_round(row_format, dim, count):
    unique = packed_rows(count, dim, row_format)
    inverse = np.arange(count)[::-1].copy()
    out = row_unpack(torch.from_numpy(unique), torch.from_numpy(inverse), row_format, dim)
    assert np.array_equal(out.numpy(), unpack_rows(unique, row_format, dim)[::-1])


@pytest.mark.parametrize("row_format", FORMATS)
@pytest.mark.parametrize(("count", "positions"), [(0, (0,)), (0, (0, 24)), (3, (0,))], ids=str)
def test_nothing_asked_for_gives_nothing(row_format, count, positions):
    unique = torch.zeros(count, RowFormat(row_format).row_bytes(64), dtype=torch.uint8)
    out = row_unpack(unique, torch.zeros(positions, dtype=torch.int64), row_format, 64)
    assert out.shape == (*positions, 64)


def test_every_fp8_value_under_every_scale():
    values = np.array([byte for byte in range(256) if byte & 0x7F != 0x7F], np.uint8)  # the two left are NaN
    scales = np.arange(255, dtype=np.uint8)
    unique = np.empty((len(scales), 256 + 8), np.uint8)
    unique[:, :256] = np.resize(values, 256)
    unique[:, 256:] = scales[:, None]
    out = row_unpack(torch.from_numpy(unique), torch.arange(len(scales)), "fp8_e4m3_ue8m0", 256)
    with np.errstate(over="ignore"):  # the largest scales take the largest values to infinity
        assert np.array_equal(out.numpy(), unpack_rows(unique, "fp8_e4m3_ue8m0", 256))


@pytest.mark.parametrize("row_format", FORMATS)
def test_the_result_does_not_share_memory_with_the_rows(row_format):
    unique = torch.from_numpy(packed_rows(4, 32, row_format))
    out = row_unpack(unique, torch.arange(4), row_format, 32)
    before = out.clone()
    unique.zero_()
    assert torch.equal(out, before)


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="row_format: 'int8' is unknown; use bf16, fp32 or fp8_e4m3_ue8m0"):
        row_unpack(torch.zeros(1, 32, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), "int8", 32)
