"""Steps with a zero gradient, all at once, against the sum taken term by term in float64."""

from __future__ import annotations

import numpy as np
import pytest

from memory_service.learning.zero_steps import BetaPair, zero_step_movement

DIM = 8


def term_by_term(first, second, last, step, rates, betas):
    total = np.zeros(first.shape)
    for row in range(len(first)):
        m, v = first[row].astype(np.float64), second[row].astype(np.float64)
        for at in range(last[row] + 1, step + 1):
            m, v = m * betas.beta1, v * betas.beta2
            corrected = np.sqrt(v / (1 - betas.beta2**at)) + betas.eps
            total[row] += rates[at - step - 1] * m / (1 - betas.beta1**at) / corrected
    return total


@pytest.mark.parametrize("betas", [BetaPair(0.9, 0.999, 1e-8), BetaPair(0.5, 0.9, 1e-3), BetaPair(0.99, 0.9999, 1e-12)])
@pytest.mark.parametrize("step", [2, 30, 700])
def test_the_movement_is_the_sum_of_all_steps(betas, step):
    rng = np.random.default_rng(step)
    last = rng.integers(1, step, 30)
    scale = 10.0 ** rng.integers(-10, 2, (30, 1))
    first = (rng.standard_normal((30, DIM)) * scale).astype(np.float32)
    second = np.square(rng.standard_normal((30, DIM)) * scale).astype(np.float32)
    rates = (0.01 * rng.random(step)).tolist()
    moved = zero_step_movement(first, second, last, step, rates, betas)
    expected = term_by_term(first, second, last, step, rates, betas)
    np.testing.assert_allclose(moved, expected, rtol=3e-6, atol=1e-12)


def test_a_row_comes_to_rest():
    betas = BetaPair(0.9, 0.999, 1e-8)
    one = np.ones((1, DIM), np.float32)
    moved = [
        zero_step_movement(one, one, np.array([1]), step, [1e-2] * step, betas)
        for step in (betas.horizon + 1, 50 * betas.horizon)
    ]
    np.testing.assert_allclose(moved[0], moved[1], rtol=1e-6)


def test_a_row_moves_alike_to_the_last_bit_whatever_rows_it_is_read_with():
    betas, step = BetaPair(0.9, 0.999, 1e-8), 300
    rng = np.random.default_rng(0)
    last = rng.integers(1, step, 200)
    first = rng.standard_normal((200, DIM)).astype(np.float32)
    second = np.square(rng.standard_normal((200, DIM))).astype(np.float32)
    rates = (0.01 * rng.random(step)).tolist()
    together = zero_step_movement(first, second, last, step, rates, betas)
    for rows in ([7], [3, 150], list(range(100, 200))):
        alone = zero_step_movement(first[rows], second[rows], last[rows], step, rates, betas)
        np.testing.assert_array_equal(alone, together[rows])
