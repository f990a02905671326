"""Update rules of rows against torch's optimizers over the whole table."""

from __future__ import annotations

import numpy as np
import pytest

from memory_service.learning.optimizers import OPTIMIZERS, Clock, OptimizerConfig, row_optimizer
from tests.memory_service.learning.dense import Dense, batches

ROWS, DIM, STEPS = 40, 6, 60
BITWISE = ("sgd", "adagrad")


def trained(config: OptimizerConfig, steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
    """The values of a table after some steps: by row and by the dense reference."""
    start = np.random.default_rng(1).standard_normal((ROWS, DIM)).astype(np.float32)
    dense, optimizer = Dense(start, config), row_optimizer(config, DIM)
    state = np.zeros((ROWS, DIM + optimizer.slots), np.float32)
    state[:, :DIM] = start
    rates: list[float] = []
    for step, (rows, gradients, rate) in enumerate(batches(ROWS, DIM, steps), 1):
        touched = state[rows]
        optimizer.catch_up(touched, Clock(step - 1, rates))
        rates.append(rate)
        optimizer.step(touched, gradients, Clock(step, rates))
        state[rows] = touched
        dense.step(rows, gradients, rate)
    optimizer.catch_up(state, Clock(steps, rates))
    return state[:, :DIM], dense.values


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_take_the_steps_of_the_dense_optimizer(name):
    by_row, dense = trained(OptimizerConfig(name))
    if name in BITWISE:
        np.testing.assert_array_equal(by_row, dense)
    else:
        np.testing.assert_allclose(by_row, dense, rtol=0, atol=4e-6)


@pytest.mark.parametrize("betas", [(0.0, 0.5), (0.8, 0.99), (0.95, 0.9999)], ids=str)
def test_adam_catches_up_with_any_constants(betas):
    by_row, dense = trained(OptimizerConfig("adam", *betas, eps=1e-6), steps=120)
    np.testing.assert_allclose(by_row, dense, rtol=0, atol=4e-6)


def test_a_row_that_was_never_touched_stays_as_it_was_under_adam():
    optimizer = row_optimizer(OptimizerConfig("adam"), DIM)
    state = np.zeros((1, DIM + optimizer.slots), np.float32)
    state[:, :DIM] = 3
    assert not optimizer.catch_up(state, Clock(9, [0.1] * 9)).any()
    assert (state[:, :DIM] == 3).all()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"name": "lion"}, "name: 'lion'"),
        ({"beta1": 1.0}, "beta1: 1.0"),
        ({"beta2": -0.1}, "beta2: -0.1"),
        ({"eps": 0.0}, "eps: 0.0"),
        ({"name": "adam", "beta1": 0.9, "beta2": 0.5}, "beta1: 0.9 squared"),
    ],
    ids=str,
)
def test_constants_that_cannot_be_are_refused_by_name(fields, named):
    with pytest.raises(ValueError, match=named):
        OptimizerConfig(**fields)
