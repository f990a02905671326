"""One shard's learner: what it refuses, what may be repeated, and that nothing is ever applied in part."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from memory_service import Placement, RowFormat, ShardAddress
from memory_service.errors import DeadlineExceeded, InvalidRequest, RowOutOfRange, UnknownTable, WrongStep
from memory_service.learning.learner import Learner, LearningRun
from memory_service.learning.optimizers import OptimizerConfig
from memory_service.learning.pushes import Push
from memory_service.learning.state import write_learning_snapshot
from memory_service.shard.shard import Shard
from tests.memory_service.conftest import spec_of
from tests.memory_service.training.conftest import SPECS, blocks_of, start_values

SGD = OptimizerConfig("sgd")
FIRST, SECOND = SPECS


@pytest.fixture
def shard(tmp_path):
    return filled(tmp_path / "memory", SGD)


def filled(uri, optimizer, specs=SPECS):
    snapshot = write_learning_snapshot(uri, {spec: blocks_of(start_values(spec), spec) for spec in specs}, optimizer)
    shard = Shard("shard")
    placement = Placement.build(1, [ShardAddress("shard", "")], snapshot.specs.values())
    shard.prepare(placement, snapshot_uri=snapshot.uri)
    shard.activate(placement)
    return shard


def learner_of(shard, ranks=1, **fields):
    learner = Learner(shard)
    learner.begin(LearningRun(**{"incarnation": 7, "ranks": ranks, "version": 5, "optimizer": SGD, **fields}))
    return learner


def push(rank=0, step=1, table=FIRST, rows=(3,), value=1.0, **fields):
    gradients = np.full((len(rows), table.dim), value, np.float32)
    whole = {"incarnation": 7, "part": 0, "parts": 1, "rate": 0.5, "rows": np.array(rows), "gradients": gradients}
    return Push(**{**whole, "rank": rank, "step": step, "table": table.name, **fields})


def push_step(learner, step=1, ranks=1, **fields):
    for rank, table in itertools.product(range(ranks), SPECS):
        learner.push(push(rank, step, table, **fields))


def values(shard, spec=FIRST):
    rows, _, _ = shard.lookup(spec.name, np.arange(spec.rows), 1, spec.fingerprint)
    return rows.copy().view(np.float32)


def test_a_step_moves_the_rows_that_have_gradients_and_no_others(shard):
    learner = learner_of(shard)
    push_step(learner, rows=(3, 5))
    assert learner.squared_norm(7, 1, 0) == 4 * FIRST.dim
    assert learner.commit(7, 1, 1.0) == 6
    moved = values(shard) - start_values(FIRST)
    assert np.flatnonzero(moved.any(axis=1)).tolist() == [3, 5]
    np.testing.assert_allclose(moved[3], -0.5, rtol=1e-6)
    assert [shard.tables[spec.name].version for spec in SPECS] == [6, 6]


def test_repeated_and_reordered_parts_change_nothing(tmp_path):
    outcomes = []
    for order in ([0, 1, 2, 3], [3, 3, 1, 0, 2, 0, 1]):
        shard = filled(tmp_path / str(len(order)), SGD)
        learner = learner_of(shard, ranks=2)
        parts = [
            push(rank, rows=(part, 9), value=rank + 0.1 * part + 1 / 3, part=part, parts=2)
            for rank in range(2)
            for part in range(2)
        ]
        for number in order:
            learner.push(parts[number])
        for rank in (1, 0, 1):
            learner.push(push(rank, table=SECOND))
        learner.squared_norm(7, 1, 0)
        for _ in range(3):
            learner.commit(7, 1, 0.5)
        for late in parts:
            learner.push(late)
        outcomes.append(values(shard))
        assert shard.tables[FIRST.name].version == 6
    np.testing.assert_array_equal(*outcomes)


def test_a_step_waits_for_all_ranks_and_names_those_that_are_missing(shard):
    learner = learner_of(shard, ranks=3)
    for table in SPECS:
        learner.push(push(1, table=table))
    learner.push(push(2, table=FIRST))
    with pytest.raises(DeadlineExceeded, match=r"step 1: shard waits for the pushes of ranks \[0, 2\]"):
        learner.squared_norm(7, 1, 0.01)
    with pytest.raises(WrongStep, match=r"the pushes of ranks \[0, 2\] are missing"):
        learner.commit(7, 1, 1.0)


def nan_gradients():
    gradients = np.ones((2, FIRST.dim), np.float32)
    gradients[1, 2] = np.nan
    return {"rows": (3, 8), "gradients": gradients}


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (nan_gradients(), InvalidRequest, r"rank 0, step 1, table 'engram.1': the gradient of row 8 is not finite"),
        ({"rows": (5, 3)}, InvalidRequest, "row ids must ascend"),
        ({"rows": (3, 3)}, InvalidRequest, "row ids must ascend"),
        ({"rows": (FIRST.rows,)}, RowOutOfRange, "has rows 0 to"),
        ({"gradients": np.ones((1, 5), np.float32)}, InvalidRequest, r"1 rows of 6 values, gradients \[1, 5\]"),
        ({"rank": 2}, InvalidRequest, "there are ranks 0 to 1"),
        ({"part": 2, "parts": 2}, InvalidRequest, "part 2 of 2"),
        ({"rate": float("inf")}, InvalidRequest, "the learning rate inf"),
        ({"step": 2}, WrongStep, "step 2 is not next, 0 steps are applied"),
        ({"incarnation": 6}, WrongStep, "attempt 6 is over, attempt 7 is under way"),
        ({"table": spec_of("engram.9")}, UnknownTable, "no table 'engram.9'"),
    ],
    ids=str,
)
def test_a_push_that_cannot_be_is_refused_and_leaves_nothing(shard, fields, error, message):
    learner = learner_of(shard, ranks=2)
    with pytest.raises(error, match=message):
        learner.push(push(**fields))
    push_step(learner, ranks=2)
    learner.commit(7, 1, 0.5)
    np.testing.assert_allclose(values(shard)[3] - start_values(FIRST)[3], -0.5, rtol=1e-6)


def test_ranks_with_different_learning_rates_are_refused_before_anything_is_applied(shard):
    learner = learner_of(shard, ranks=2)
    learner.push(push(0, rate=0.5))
    with pytest.raises(InvalidRequest, match=r"rank 1, step 1.*the learning rate is 0.25, and rank 0 has 0.5"):
        learner.push(push(1, rate=0.25))
    np.testing.assert_array_equal(values(shard), start_values(FIRST))


def test_parts_of_one_push_agree_on_their_number(shard):
    learner = learner_of(shard)
    learner.push(push(part=0, parts=2))
    with pytest.raises(InvalidRequest, match="a part of 3, after one of 2"):
        learner.push(push(part=1, parts=3))


def test_ranks_that_commit_with_different_factors_are_told(shard):
    learner = learner_of(shard)
    push_step(learner)
    learner.commit(7, 1, 1.0)
    with pytest.raises(InvalidRequest, match=r"step 1: a rank commits with the factor 0.5, after 1.0"):
        learner.commit(7, 1, 0.5)


def test_a_step_that_would_overflow_a_row_is_applied_to_no_table(tmp_path):
    specs = tuple(dataclasses.replace(spec, row_format=RowFormat.BF16) for spec in SPECS)
    shard = filled(tmp_path / "memory", SGD, specs)
    before = {spec.name: values(shard, spec) for spec in specs}
    learner = learner_of(shard)
    learner.push(push(table=specs[0]))
    learner.push(push(table=specs[1], value=3e38, rate=0.5))
    with pytest.raises(InvalidRequest, match=r"table 'engram.3', step 1"):
        learner.commit(7, 1, 1e3)
    for spec in specs:
        np.testing.assert_array_equal(values(shard, spec), before[spec.name])
    assert learner.step == 0


def test_served_rows_are_requantised_where_they_were_touched(tmp_path):
    specs = tuple(dataclasses.replace(spec, row_format=RowFormat.BF16) for spec in SPECS)
    shard = filled(tmp_path / "memory", SGD, specs)
    learner = learner_of(shard)
    for _ in range(3):  # steps of less than half a unit of bf16 add up in the masters
        push_step(learner, learner.step + 1, rows=(3,), value=2e-3)
        learner.commit(7, learner.step + 1, 1.0)
    served, _, _ = shard.lookup(FIRST.name, np.array([3, 4]), 1, specs[0].fingerprint)
    start = start_values(FIRST)[[3, 4]]
    start[0] -= 3e-3
    from memory_service import pack_rows

    np.testing.assert_array_equal(served, pack_rows(start, RowFormat.BF16))


def test_an_attempt_ends_the_one_before_and_its_unfinished_step(shard):
    learner = learner_of(shard, ranks=2)
    learner.push(push(0))
    learner.begin(LearningRun(incarnation=8, ranks=1, step=4, version=9, optimizer=SGD))
    with pytest.raises(WrongStep, match="attempt 7 is over"):
        learner.push(push(1))
    push_step(learner, 5, incarnation=8)
    assert learner.commit(8, 5, 1.0) == 10
    with pytest.raises(WrongStep, match="attempt 7 is over, attempt 8 has begun"):
        learner.begin(LearningRun(incarnation=7, ranks=2, optimizer=SGD))


def test_a_rank_that_waits_is_let_go_when_its_attempt_ends(shard):
    from concurrent.futures import ThreadPoolExecutor

    learner = learner_of(shard, ranks=2)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(learner.squared_norm, 7, 1, 30)
        learner.end(7)
        with pytest.raises(WrongStep, match="does not learn"):
            waiting.result(10)


def test_tables_go_back_to_a_snapshot(tmp_path):
    adam = OptimizerConfig("adam")
    shard = filled(tmp_path / "memory", adam)
    learner = learner_of(shard, optimizer=adam)
    for step in (1, 2):
        push_step(learner, step, rows=(step, 9))
        learner.commit(7, step, 1.0)
    uri = f"{tmp_path / 'memory'}?generation=0"
    learner.begin(LearningRun(incarnation=8, ranks=1, step=0, version=11, optimizer=adam, snapshot_uri=uri))
    for spec in SPECS:
        np.testing.assert_array_equal(values(shard, spec), start_values(spec))
    assert shard.tables[FIRST.name].version == 11


def test_state_of_another_optimizer_is_refused_by_name(shard):
    with pytest.raises(InvalidRequest, match=r"table .engram\.1. on shard has state of 6 values a row, adam needs 19"):
        learner_of(shard, optimizer=OptimizerConfig("adam"))


def test_a_table_without_state_does_not_learn(tmp_path, spec, packed, snapshot):
    shard = Shard("shard")
    placement = Placement.build(1, [ShardAddress("shard", "")], [spec])
    shard.prepare(placement, snapshot_uri=snapshot)
    shard.activate(placement)
    with pytest.raises(InvalidRequest, match="has no optimizer state, sgd needs"):
        learner_of(shard)


def test_a_new_placement_ends_learning(shard):
    learner = learner_of(shard)
    placement = dataclasses.replace(shard.placement, epoch=2)
    shard.prepare(placement)
    shard.activate(placement)
    with pytest.raises(WrongStep, match="the placement has changed"):
        learner.push(push())
