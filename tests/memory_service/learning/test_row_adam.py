"""Row-wise Adam against torch.optim.SparseAdam, which also touches only rows with a gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from memory_service.learning.row_adam import AdamConfig, RowAdam

ROWS, DIM = 40, 6


def batches(steps, seed=0):
    """Row sets that overlap, grow and shrink, with gradients of very different sizes."""
    rng = np.random.default_rng(seed)
    for step in range(steps):
        rows = np.sort(rng.choice(ROWS, size=1 + (7 * step) % 25, replace=False))
        yield rows, (rng.standard_normal((len(rows), DIM)) * 10.0 ** rng.integers(-4, 3)).astype(np.float32)


@pytest.mark.parametrize("config", [AdamConfig(), AdamConfig(0.05, 0.8, 0.99, 1e-6), AdamConfig(beta1=0.0)], ids=str)
def test_steps_are_those_of_sparse_adam(config):
    start = np.random.default_rng(1).standard_normal((ROWS, DIM)).astype(np.float32)
    weight = torch.nn.Parameter(torch.from_numpy(start.copy()))
    reference = torch.optim.SparseAdam(
        [weight], lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps
    )
    values = start.copy()
    adam = RowAdam(values, config)
    for step, (rows, gradients) in enumerate(batches(12)):
        scale = 1.0 if step < 6 else 0.25
        reference.param_groups[0]["lr"] = config.learning_rate * scale
        indices = torch.from_numpy(rows)[None]
        weight.grad = torch.sparse_coo_tensor(indices, torch.from_numpy(gradients), (ROWS, DIM), check_invariants=True)
        reference.step()
        adam.step(rows, gradients, scale)
        np.testing.assert_allclose(values, weight.detach().numpy(), rtol=1e-6, atol=2e-7)
    state = reference.state[weight]
    np.testing.assert_allclose(adam.first, state["exp_avg"].numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(adam.second, state["exp_avg_sq"].numpy(), rtol=1e-5, atol=1e-9)


def test_other_rows_keep_their_values_and_moments():
    values = np.ones((ROWS, DIM), np.float32)
    adam = RowAdam(values, AdamConfig())
    adam.step(np.array([3, 5]), np.ones((2, DIM), np.float32))
    first, second = adam.first[5].copy(), adam.second[5].copy()
    adam.step(np.array([3]), np.ones((1, DIM), np.float32))
    assert np.array_equal(adam.first[5], first)
    assert np.array_equal(adam.second[5], second)
    untouched = np.delete(np.arange(ROWS), [3, 5])
    assert (values[untouched] == 1).all()
    assert (adam.first[untouched] == 0).all()
    assert (values[3] < values[5]).all()
    assert (values[5] < 1).all()


def test_the_table_is_updated_in_place_and_the_gradients_are_not():
    values, gradients = np.zeros((ROWS, DIM), np.float32), np.full((2, DIM), 3.0, np.float32)
    adam = RowAdam(values, AdamConfig(learning_rate=0.1))
    adam.step(np.array([0, 39]), gradients)
    assert adam.values is values
    np.testing.assert_allclose(values[[0, 39]], -0.1, rtol=1e-6)  # Adam's first step is the learning rate
    assert (gradients == 3).all()
    assert values.dtype == np.float32


def test_a_step_without_rows_still_counts():
    values = np.zeros((ROWS, DIM), np.float32)
    adam = RowAdam(values, AdamConfig())
    adam.step(np.empty(0, np.int64), np.empty((0, DIM), np.float32))
    assert adam.steps == 1
    assert (values == 0).all()
