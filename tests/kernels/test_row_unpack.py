"""Every format and awkward size against the numpy decoder that defines the row formats."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels.row_unpack import row_expand, row_unpack
from memory_service.tables.rows import RowFormat, pack_rows, unpack_rows

FORMATS = [fmt.value for fmt in RowFormat]

pytestmark = pytest.mark.usefixtures("implementation")


def packed_rows(count, dim, row_format):
    rng = np.random.default_rng(count * 1000 + dim)
    values = rng.standard_normal((count, dim), np.float32) * np.exp2(rng.integers(-30, 30, (count, 1)))
    values[count // 2 :, ::3] = 0
    return pack_rows(values.astype(np.float32), row_format)


@pytest.mark.parametrize("row_format", FORMATS)
@pytest.mark.parametrize("dim", [32, 96, 256])
@pytest.mark.parametrize("positions", [(1,), (5,), (17, 3), (123, 5), (2, 5, 7)], ids=str)
def test_rows_decode_and_spread_as_the_reference(device, row_format, dim, positions):
    unique = packed_rows(17, dim, row_format)
    inverse = np.random.default_rng(0).integers(0, 17, positions)
    out = row_unpack(torch.from_numpy(unique).to(device), torch.from_numpy(inverse).to(device), row_format, dim)
    assert out.dtype == torch.float32
    assert np.array_equal(out.cpu().numpy(), unpack_rows(unique, row_format, dim)[inverse])


@pytest.mark.parametrize("row_format", ["bf16", "fp32"])
@pytest.mark.parametrize("dim", [1, 5, 17, 123])
@pytest.mark.parametrize("count", [1, 5, 123])
def test_dimensions_need_not_be_round(device, row_format, dim, count):
    unique = packed_rows(count, dim, row_format)
    inverse = np.arange(count)[::-1].copy()
    out = row_unpack(torch.from_numpy(unique).to(device), torch.from_numpy(inverse).to(device), row_format, dim)
    assert np.array_equal(out.cpu().numpy(), unpack_rows(unique, row_format, dim)[::-1])


@pytest.mark.parametrize("row_format", FORMATS)
@pytest.mark.parametrize(("count", "positions"), [(0, (0,)), (0, (0, 24)), (3, (0,))], ids=str)
def test_nothing_asked_for_gives_nothing(device, row_format, count, positions):
    unique = torch.zeros(count, RowFormat(row_format).row_bytes(64), dtype=torch.uint8, device=device)
    out = row_unpack(unique, torch.zeros(positions, dtype=torch.int64, device=device), row_format, 64)
    assert out.shape == (*positions, 64)


@pytest.mark.filterwarnings("ignore:overflow")
def test_every_fp8_value_under_every_scale(device):
    values = np.array([byte for byte in range(256) if byte & 0x7F != 0x7F], np.uint8)  # the two left are NaN
    scales = np.arange(255, dtype=np.uint8)
    unique = np.empty((len(scales), 256 + 8), np.uint8)
    unique[:, :256] = np.resize(values, 256)
    unique[:, 256:] = scales[:, None]
    out = row_unpack(
        torch.from_numpy(unique).to(device), torch.arange(len(scales), device=device), "fp8_e4m3_ue8m0", 256
    )
    with np.errstate(over="ignore"):  # the largest scales take the largest values to infinity
        assert np.array_equal(out.cpu().numpy(), unpack_rows(unique, "fp8_e4m3_ue8m0", 256))


@pytest.mark.parametrize("row_format", FORMATS)
def test_the_result_does_not_share_memory_with_the_rows(device, row_format):
    unique = torch.from_numpy(packed_rows(4, 32, row_format)).to(device)
    out = row_unpack(unique, torch.arange(4, device=device), row_format, 32)
    before = out.clone()
    unique.zero_()
    assert torch.equal(out, before)


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="row_format: 'int8' is unknown; use bf16, fp32 or fp8_e4m3_ue8m0"):
        row_unpack(torch.zeros(1, 32, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), "int8", 32)


@pytest.mark.parametrize("row_format", FORMATS)
def test_a_narrow_result_is_rounded_once(device, assert_near, row_format):
    unique = torch.from_numpy(packed_rows(17, 64, row_format)).to(device)
    inverse = torch.arange(17, device=device).flip(0)
    out = row_unpack(unique, inverse, row_format, 64, torch.bfloat16)
    assert out.dtype == torch.bfloat16
    assert_near(out, row_unpack(unique, inverse, row_format, 64), scale=0)


def indices(device, kind, positions, count):
    """Which row each position reads: mostly different ones, or mostly the same one, and some never."""
    drawn = torch.randint(0, max(1, count - 1), (positions,), generator=torch.Generator().manual_seed(0))
    return torch.where(torch.arange(positions) % 8 > 0, 0, drawn).to(device) if kind == "hot" else drawn.to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("count", "positions", "dim"), [(1, 1, 1), (5, 17, 8), (123, 1025, 64), (40, 5, 123)])
def test_decoded_rows_are_expanded_to_positions_bit_for_bit(randn, device, count, positions, dim, dtype):
    rows, inverse = randn(count, dim, dtype=dtype), indices(device, "spread", positions, count)
    assert torch.equal(row_expand(rows, inverse), rows[inverse])
    assert row_expand(rows, inverse.reshape(1, -1, 1)).shape == (1, positions, 1, dim)


@pytest.mark.parametrize("kind", ["spread", "hot"])
@pytest.mark.parametrize(
    ("count", "positions", "dim"), [(1, 1, 1), (5, 17, 8), (123, 1025, 40), (1025, 5, 17), (3, 1300, 5)]
)
def test_gradients_are_summed_by_row(randn, assert_near, gradients, device, kind, count, positions, dim):
    rows, inverse = randn(count, dim), indices(device, kind, positions, count)
    [wanted] = gradients(lambda rows: rows[inverse], rows.double())
    [got] = gradients(lambda rows: row_expand(rows, inverse), rows)
    assert got.dtype == torch.float32
    assert_near(got, wanted, scale=positions**0.5)
    assert torch.equal(got, gradients(lambda rows: row_expand(rows, inverse), rows)[0]), "the same every time"


def test_gradients_of_half_precision_are_summed_in_single(randn, assert_near, gradients, device, implementation):
    if implementation == "torch":
        pytest.skip("torch adds in the rows' own precision")
    rows, inverse = randn(3, 16, dtype=torch.bfloat16), indices(device, "hot", 1025, 3)
    [wanted] = gradients(lambda rows: rows[inverse], rows.double())
    [got] = gradients(lambda rows: row_expand(rows, inverse), rows)
    assert_near(got, wanted)


def test_no_positions_give_no_gradient(randn, gradients, device):
    [got] = gradients(lambda rows: row_expand(rows, torch.zeros(0, dtype=torch.int64, device=device)), randn(4, 8))
    assert torch.equal(got, torch.zeros(4, 8, device=device))
