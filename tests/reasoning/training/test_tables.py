"""Training rows equals training dense embedding tables, although only the rows of a batch are touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from memory_service.learning.row_adam import AdamConfig
from memory_service.tables.rows import RowFormat, pack_rows, unpack_rows
from memory_service.tables.spec import TableSpec
from reasoning.training.tables import TrainableTables

DIM, LAYERS = 32, (1, 4)


def spec(layer, row_format="fp32"):
    return TableSpec(
        name=f"engram.{layer}", layer=layer, column_rows=(11, 13, 17, 19), max_ngram=3, heads=2, multipliers=(1, 3, 5),
        pad_id=0, token_map_sha256="0" * 64, dim=DIM, row_format=RowFormat(row_format), block_rows=16,
    )  # fmt: skip


def tables(config=None, seed=0, std=0.5):
    return TrainableTables([spec(layer) for layer in LAYERS], config or AdamConfig(), std, seed)


def rows(seed, positions=9):
    rng = np.random.default_rng(seed)
    return {layer: rng.integers(0, 60, (positions, 4)) for layer in LAYERS}


def test_tables_start_from_their_normal_distribution():
    made = tables(std=0.02)
    for layer in LAYERS:
        assert made.values[layer].shape == (60, DIM)
        assert made.values[layer].dtype == np.float32
        assert abs(made.values[layer].std() / 0.02 - 1) < 0.1
    assert not np.array_equal(made.values[1], made.values[4])
    assert np.array_equal(made.values[1], tables(std=0.02).values[1])
    assert not np.array_equal(made.values[1], tables(std=0.02, seed=1).values[1])


def test_gathered_rows_are_laid_end_to_end():
    made, ids = tables(), rows(0)
    gathered = made.gather(ids)
    for layer in LAYERS:
        expected = made.values[layer][ids[layer]].reshape(9, 4 * DIM)
        assert np.array_equal(gathered(layer).detach().numpy(), expected)


def test_gradients_of_shared_rows_are_summed():
    made = tables()
    gathered = made.gather({1: np.array([[5, 7, 5, 5], [7, 5, 2, 2]])})
    weights = torch.arange(1.0, 9.0).repeat_interleave(DIM).view(2, -1)
    (gathered(1) * weights).sum().backward()
    ((layer, (unique, gradients)),) = gathered.gradients()
    assert layer == 1
    assert unique.tolist() == [2, 5, 7]
    assert np.array_equal(gradients[:, 0], [7 + 8, 1 + 3 + 4 + 6, 2 + 5])


def test_rows_train_as_a_dense_embedding_does():
    """By SparseAdam, that is: a dense Adam would also move rows by old momentum."""
    made = tables(AdamConfig(learning_rate=0.05))
    dense = {layer: torch.nn.Parameter(torch.from_numpy(made.values[layer].copy())) for layer in LAYERS}
    reference = torch.optim.SparseAdam(list(dense.values()), lr=0.05)
    target = torch.randn(9, 4 * DIM, generator=torch.Generator().manual_seed(0))
    for step in range(6):
        ids, scale = rows(step), 1.0 - step / 10
        gathered = made.gather(ids)
        (torch.tanh(gathered(1)) * gathered(4) - target).square().mean().backward()
        made.step(gathered, scale)

        embedded = [F.embedding(torch.from_numpy(ids[layer]), dense[layer], sparse=True).flatten(1) for layer in LAYERS]
        reference.zero_grad()
        (torch.tanh(embedded[0]) * embedded[1] - target).square().mean().backward()
        reference.param_groups[0]["lr"] = 0.05 * scale
        reference.step()
    for layer in LAYERS:
        np.testing.assert_allclose(made.values[layer], dense[layer].detach().numpy(), rtol=1e-5, atol=1e-6)


def test_gradients_by_row_are_the_same_by_kernels(by_torch_and_by_kernels):
    def gradients():
        gathered = tables().gather(rows(0, positions=123))
        (torch.tanh(gathered(1)) * gathered(4)).square().sum().backward()
        return dict(gathered.gradients())

    expected, got = by_torch_and_by_kernels(gradients)
    for layer in LAYERS:
        assert np.array_equal(got[layer][0], expected[layer][0])
        np.testing.assert_allclose(got[layer][1], expected[layer][1], rtol=1e-5, atol=1e-6)


def test_a_layer_without_a_backward_pass_is_our_own_bug():
    made = tables()
    with pytest.raises(AssertionError, match="layer 1: no backward pass"):
        made.step(made.gather(rows(0)), 1.0)


@pytest.mark.parametrize("row_format", ["fp32", "bf16", "fp8_e4m3_ue8m0"])
def test_packed_blocks_are_the_table_in_its_row_format(row_format):
    made = tables()
    blocks = list(made.packed_blocks(spec(4, row_format)))
    assert [len(block) for block in blocks] == [16, 16, 16, 12]
    assert np.array_equal(np.concatenate(blocks), pack_rows(made.values[4], row_format))
    if row_format == "fp32":
        assert np.array_equal(unpack_rows(np.concatenate(blocks), row_format, DIM), made.values[4])
