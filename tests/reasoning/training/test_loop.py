"""A tiny model learns a tiny corpus, repeatably, with balanced experts; and what a run must not be asked to do."""

from __future__ import annotations

import dataclasses
import itertools
import re

import numpy as np
import pytest
import torch

from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.training.loop import Trainer
from reasoning.training.recipe import TrainingConfig

from .conftest import MODEL, RUN


def train(parts, config, model: DeepseekV3Config = MODEL):
    trainer, seen = Trainer(model, *parts, config), []
    trainer.run(seen.append)
    return trainer, seen


def test_the_loss_falls_and_the_tables_and_routers_took_part(parts):
    fresh = Trainer(MODEL, *parts, RUN)
    trainer, seen = train(parts, RUN)
    first, last = (np.mean([p.loss for p in part]) for part in (seen[:3], seen[-5:]))
    assert abs(first - np.log(300)) < 0.3  # knows nothing yet
    assert last < 0.6 * first
    assert [p.step for p in seen] == list(range(1, 41))
    assert seen[-1].tokens == 40 * 32 * 4
    assert [p.share for p in seen] == [step / 40 for step in range(1, 41)]
    assert not trainer.model.training
    for layer, values in trainer.tables.values.items():
        assert np.abs(values - fresh.tables.values[layer]).max() > 1e-2
    before, after = fresh.model.state_dict(), trainer.model.state_dict()
    assert [name for name in after if torch.equal(before[name], after[name])] == []


def test_a_seed_repeats_every_loss(parts):
    short = dataclasses.replace(RUN, steps=4)
    losses = [
        [p.loss for p in train(parts, config)[1]] for config in (short, short, dataclasses.replace(short, seed=1))
    ]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_the_correction_bias_moves_towards_experts_with_too_few_tokens(parts):
    trainer = Trainer(MODEL, *parts, dataclasses.replace(RUN, balance_rate=0.25))
    routers = [layer.mlp for layer in trainer.model.layers[1:]]
    trainer.step(np.array([0]), 1.0)
    for moe in routers:
        assert moe.load.sum() == RUN.window * MODEL.num_experts_per_tok
        even = moe.load.float().mean()
        assert moe.gate.e_score_correction_bias.tolist() == (0.25 * (even - moe.load).sign()).tolist()


def test_a_step_by_kernels_is_that_by_torch(parts, by_torch_and_by_kernels):
    config = dataclasses.replace(RUN, window=7)

    def step():
        trainer = Trainer(MODEL, *parts, config)
        loss = trainer.step(np.array([0, 50]), 1.0)
        return loss, trainer.tables.values, trainer.model.state_dict()

    (loss, values, weights), (got_loss, got_values, got_weights) = by_torch_and_by_kernels(step)
    assert abs(got_loss - loss) < 1e-5
    for layer, table in values.items():  # Adam's first step is as long as the learning rate, 5e-3 and more
        np.testing.assert_allclose(got_values[layer], table, rtol=0, atol=1e-4)
    assert max((got_weights[name] - weight).abs().max() for name, weight in weights.items()) < 1e-4


def test_no_window_looks_back_into_another_window_or_document(parts):
    trainer = Trainer(MODEL, *parts, RUN)
    hasher, stream = parts
    begin = int(np.flatnonzero(np.diff(stream.documents))[0]) - 3  # four tokens of one document, then the next one
    places = np.array([begin, begin])[:, None] + np.arange(8)
    rows = trainer._hash(places)
    for layer in rows:
        expected = np.concatenate([hasher.hash(stream.tokens[part])[layer] for part in (places[0, :4], places[0, 4:])])
        assert rows[layer].tolist() == np.concatenate([expected, expected]).tolist()


def imbalance(parts, rate):
    """The share of the busiest expert over the end of a run, relative to an even one."""
    trainer, loads = Trainer(MODEL, *parts, dataclasses.replace(RUN, steps=24, balance_rate=rate)), []
    mixtures = [layer.mlp for layer in trainer.model.layers[1:]]
    with torch.no_grad():
        for moe in mixtures:
            moe.gate.e_score_correction_bias += torch.tensor([0.2, 0.2, 0.0, 0.0])  # all tokens go to two experts
    trainer.run(lambda _: loads.append(torch.stack([moe.load for moe in mixtures])))
    late = torch.stack(loads[-8:]).double().mean(0)
    return (late.max(-1).values / late.mean(-1)).tolist()


def test_balancing_evens_out_the_load(parts):
    assert min(imbalance(parts, 0.0)) > 1.8
    assert max(imbalance(parts, 0.02)) < 1.3


def test_the_rate_rises_and_falls_over_the_run(parts):
    trainer = Trainer(MODEL, *parts, dataclasses.replace(RUN, warm_up=0.2))
    rates = [trainer._rate(share) for share in np.linspace(0, 1, 51)]
    assert rates[0] > 0
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) == 10
    assert all(a < b for a, b in itertools.pairwise(rates[:11]))
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == 0


def test_decay_spares_norms_gates_and_convolutions(parts):
    trainer = Trainer(MODEL, *parts, RUN)
    decayed, spared = trainer.optimizer.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    spared_names = {re.sub(r"layers\.\d+\.", "", names[id(p)]) for p in spared["params"]}
    assert {"engram.conv.weight", "engram.conv.norm_weight", "engram.q_weight", "engram.k_weight"} < spared_names
    assert all("norm" in name or "engram" in name for name in spared_names)
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_minutes_end_a_run_too(parts):
    _, seen = train(parts, dataclasses.replace(RUN, steps=0, minutes=1e-9))
    assert len(seen) <= 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "steps=0, minutes=0.0: give exactly one"),
        ({"steps": 3, "minutes": 1}, "steps=3, minutes=1: give exactly one"),
        ({"steps": -1, "minutes": 5}, "steps=-1, minutes=5: give exactly one"),
        ({"steps": 5, "minutes": -1}, "steps=5, minutes=-1: give exactly one"),
        ({"minutes": float("nan")}, "minutes=nan: give exactly one"),
        ({"steps": 1, "window": 1}, "window=1, batch=8: use at least 2 and 1"),
        ({"steps": 1, "batch": 0}, "window=512, batch=0: use at least 2 and 1"),
        ({"steps": 1, "warm_up": 0.0}, "warm_up=0.0: use a share of the run"),
        ({"steps": 1, "warm_up": 1.0}, "warm_up=1.0: use a share of the run"),
    ],
    ids=str,
)
def test_a_run_that_makes_no_sense_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**values)


def test_a_window_beyond_the_models_context_is_refused(parts):
    with pytest.raises(ValueError, match="window=65: the model has 64 positions"):
        Trainer(MODEL, *parts, dataclasses.replace(RUN, window=65))
