"""What a run may be asked to do, and how its learning rate goes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from reasoning.training.config import TablesConfig, TrainingConfig


def rates(schedule):
    config = TrainingConfig(steps=100, warm_up=0.2, schedule=schedule)
    return [config.rate(share) for share in np.linspace(0, 1, 51).tolist()]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_rate_rises_from_above_zero_to_one_as_the_run_warms_up(schedule):
    found = rates(schedule)
    assert found[0] > 0
    assert all(a < b for a, b in itertools.pairwise(found[:11]))
    assert found[10] == pytest.approx(1.0)


def test_the_rate_falls_to_zero_or_stays():
    linear, cosine, constant = (rates(schedule)[10:] for schedule in ("linear", "cosine", "constant"))
    np.testing.assert_allclose(linear, np.linspace(1, 0, 41), atol=1e-12)
    np.testing.assert_allclose(cosine, (1 + np.cos(np.pi * np.linspace(0, 1, 41))) / 2, atol=1e-12)
    assert constant == [1.0] * 41


def test_steps_or_minutes_end_a_run():
    by_steps, by_minutes = TrainingConfig(steps=8), TrainingConfig(minutes=2)
    assert [by_steps.share(step, 1e9) for step in (0, 2, 8, 9)] == [0, 0.25, 1, 1]
    assert [by_minutes.share(10**9, seconds) for seconds in (0, 30, 120, 121)] == [0, 0.25, 1, 1]


def test_a_batch_is_divided_among_workers_and_parts():
    config = TrainingConfig(steps=1, batch=12, accumulation=2)
    assert [config.sequences_of_rank(ranks) for ranks in (1, 2, 3)] == [12, 6, 4]
    with pytest.raises(ValueError, match=r"batch: 12 .* among 4 workers in 2 parts each; use a multiple of 8"):
        config.sequences_of_rank(4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, r"steps: 0, minutes: 0.0: give exactly one"),
        ({"minutes": 1}, r"steps: 3, minutes: 1: give exactly one"),
        ({"steps": -1, "minutes": 5}, r"steps: -1, minutes: 5: give exactly one"),
        ({"steps": 5, "minutes": -1}, r"steps: 5, minutes: -1: give exactly one"),
        ({"steps": 0, "minutes": math.nan}, r"minutes: nan: give exactly one"),
        ({"batch": 0}, "batch: 0 must be at least 1"),
        ({"accumulation": 0}, "accumulation: 0 must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate: 0.0 must be above 0"),
        ({"learning_rate": math.inf}, "learning_rate: inf must be above 0 and finite"),
        ({"clip_norm": math.nan}, "clip_norm: nan must be above 0"),
        ({"weight_decay": -0.1}, "weight_decay: -0.1 must be 0 or more"),
        ({"balance_rate": math.nan}, "balance_rate: nan must be 0 or more"),
        ({"sequence_balance": -1.0}, "sequence_balance: -1.0 must be 0 or more"),
        ({"mtp_weight": math.inf}, "mtp_weight: inf must be 0 or more, and finite"),
        ({"warm_up": 0.0}, "warm_up: 0.0 must be a share of the run"),
        ({"warm_up": 1.0}, "warm_up: 1.0 must be a share of the run"),
        ({"optimizer": "lion"}, "optimizer: 'lion' is unknown; use adamw or muon"),
        ({"schedule": "step"}, "schedule: 'step' is unknown; use linear or cosine or constant"),
        ({"precision": "fp16"}, "precision: 'fp16' is unknown; use fp32 or bf16"),
        ({"parallel": "pipeline"}, "parallel: 'pipeline' is unknown; use ddp or fsdp2"),
        ({"parallel": "fsdp2", "optimizer": "muon"}, "parallel: fsdp2 goes with adamw"),
        ({"parallel": "fsdp2", "fixed_reduction_order": True}, "parallel: fsdp2 goes with .* without fixed_reduction"),
    ],
    ids=str,
)
def test_a_run_that_makes_no_sense_is_refused_by_the_name_of_the_setting(values, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**{"steps": 3, **values})


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_tables_without_a_sensible_rate_are_refused(factor):
    with pytest.raises(ValueError, match=r"rate_factor: .* must be above 0; freeze the tables"):
        TablesConfig(rate_factor=factor)
