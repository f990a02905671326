"""Tables in shards, trained by several ranks, against one dense table in one process."""

from __future__ import annotations

from concurrent.futures import wait
from contextlib import closing

import numpy as np
import pytest

from memory_service import MemoryClient
from memory_service.learning.optimizers import OPTIMIZERS, OptimizerConfig
from memory_service.tables.rows import unpack_rows
from memory_service.training.local import LocalLearningMemory
from tests.memory_service.learning.dense import Dense, batches
from tests.memory_service.training.conftest import SPECS, start_values

STEPS = 50
BITWISE = ("sgd", "adagrad")
RATE = 0.05


def rank_batches(spec, rank):
    """(rows, gradients) of each step, for one table and one rank."""
    for rows, gradients, _ in batches(spec.rows, spec.dim, STEPS, seed=100 * spec.layer + rank):
        yield rows, gradients


def summed_in_rank_order(parts, rows, dim):
    total = np.zeros((rows, dim), np.float32)
    touched = np.zeros(rows, bool)
    for ids, gradients in parts:
        total[ids] += gradients
        touched[ids] = True
    return np.flatnonzero(touched), total[touched]


def train_dense(config, ranks):
    """Values of the tables, by name, and the gradient norms of all steps."""
    tables, norms = {}, np.zeros(STEPS)
    for spec in SPECS:
        dense = Dense(start_values(spec), config)
        for step, parts in enumerate(zip(*(rank_batches(spec, rank) for rank in range(ranks)), strict=True)):
            rows, gradients = summed_in_rank_order(parts, spec.rows, spec.dim)
            norms[step] += np.square(gradients, dtype=np.float64).sum()
            dense.step(rows, gradients * np.float32(1 / ranks), RATE)
        tables[spec.name] = dense.values
    return tables, norms


def train(memories, look=lambda step, memory: None):
    """Let all ranks take all steps; the norms that they were told."""
    ranks = len(memories)
    streams = [{spec.name: rank_batches(spec, rank) for spec in SPECS} for rank in range(ranks)]
    norms = []
    for step in range(1, STEPS + 1):
        look(step - 1, memories[0])
        pushed = [
            memory.push(step, name, *next(stream), RATE)
            for memory, tables in zip(memories, streams, strict=True)
            for name, stream in tables.items()
        ]
        found = {memory.squared_norm(step).result() for memory in memories}
        wait(pushed)
        assert not [future.exception() for future in pushed if future.exception()]
        assert len(found) == 1, "every rank is told the same norm"
        norms.append(found.pop())
        for memory in memories:
            memory.commit(step, 1 / ranks).result()
    return norms


def values_of(memory, step):
    found = {}
    for spec in SPECS:
        rows = memory.lookup(spec.name, np.arange(spec.rows), step).result()
        found[spec.name] = unpack_rows(rows.unique, spec.row_format, spec.dim)[rows.inverse]
    return found


def assert_same(found, expected, name):
    for table, values in expected.items():
        if name in BITWISE:
            np.testing.assert_array_equal(found[table], values)
        else:
            np.testing.assert_allclose(found[table], values, rtol=0, atol=4e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("ranks", "count"), [(1, 1), (2, 3), (4, 3)])
def test_shards_train_like_one_dense_table(shards, name, ranks, count):
    config = OptimizerConfig(name)
    memory = shards(count, config)
    memories = memory.ranks(memory.begin(ranks, config))
    norms = train(memories)
    expected, expected_norms = train_dense(config, ranks)
    assert_same(values_of(memories[0], STEPS), expected, name)
    np.testing.assert_allclose(norms, expected_norms, rtol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_table_in_the_process_trains_like_a_dense_one(learning_snapshot, name):
    config = OptimizerConfig(name)
    memory = LocalLearningMemory(learning_snapshot(config).uri, config)
    train([memory])
    assert_same(values_of(memory, STEPS), train_dense(config, 1)[0], name)


@pytest.mark.parametrize("name", ["adam", "adagrad"])
def test_rows_that_are_read_between_steps_do_not_change_the_outcome(shards, name):
    """Rows that an Adam has read catch up in two parts instead of one."""
    config = OptimizerConfig(name)
    memory = shards(3, config)
    rng = np.random.default_rng(5)

    def look(step, rank):
        for spec in SPECS:
            rank.lookup(spec.name, rng.integers(0, spec.rows, 20), step).result()

    memories = memory.ranks(memory.begin(2, config))
    train(memories, look)
    assert_same(values_of(memories[0], STEPS), train_dense(config, 2)[0], name)


def test_a_client_that_serves_sees_every_version_whole(shards):
    """Also of Adam, under which all rows change in every step and catch up when they are read."""
    config = OptimizerConfig("adam")
    memory = shards(2, config)
    memories = memory.ranks(memory.begin(1, config))
    seen, expected = {}, {}

    def look_with(client):
        def look(step, _):
            if step % 7 == 0:
                rows = {spec.name: client.lookup(spec.name, np.arange(spec.rows)).result() for spec in SPECS}
                seen[step] = {name: found.unique[found.inverse].view(np.float32) for name, found in rows.items()}

        return look

    with closing(MemoryClient.connect(memory.address)) as client:
        train(memories, look_with(client))
    local = LocalLearningMemory(memory.snapshot.uri, config)
    train([local], lambda step, rank: expected.setdefault(step, values_of(rank, step)))
    assert len(seen) > 5
    for step, tables in seen.items():
        assert_same(tables, expected[step], config.name)
