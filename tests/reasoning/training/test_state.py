"""A trainer that is given the state of another goes on as that one would, bit by bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from memory_service.training.local import LocalLearningMemory
from reasoning.training.state import restore, state_of
from reasoning.training.trainer import Trainer
from tests.reasoning.training.small import (
    MODEL,
    WITH_MTP,
    hasher,
    local_memory,
    new_model,
    take_steps,
    training,
    transpose_in_memory,
    values_of,
)


@pytest.mark.parametrize(
    ("config", "model"),
    [
        (training("adam"), MODEL),
        (training("adagrad", optimizer="muon"), MODEL),
        (training(mtp_weight=0.3, accumulation=2), WITH_MTP),
    ],
    ids=["adamw", "muon", "mtp"],
)
def test_ten_steps_are_five_and_five_more_from_a_checkpoint(new_trainer, tmp_path, config, model):
    undisturbed, first = (new_trainer(config, model) for _ in range(2))
    take_steps(undisturbed, 5)
    undisturbed.memory.snapshot(tmp_path / "other")  # under Adam, reading rows rounds them once more
    expected = take_steps(undisturbed, 5)
    take_steps(first, 5)
    state, tables = state_of(first), first.memory.snapshot(tmp_path / "tables")
    take_steps(first, 2)  # what came after the checkpoint leaves no trace in it
    memory = LocalLearningMemory(tables.uri, config.tables.optimizer, step=5)
    second = Trainer(new_model(model, seed=9), hasher(), memory, config, step=5)
    restore(second, state)
    found = take_steps(second, 5)
    assert [report.step for report in found] == [6, 7, 8, 9, 10]
    kept = [(r.loss, r.gradient_norm, r.rate, r.expert_load, r.gates) for r in expected]
    assert [(r.loss, r.gradient_norm, r.rate, r.expert_load, r.gates) for r in found] == kept
    for name, tensor in undisturbed.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name
    for name, values in values_of(undisturbed.memory, 10).items():
        np.testing.assert_array_equal(values_of(second.memory, 10)[name], values)


def test_a_state_fits_weights_that_are_laid_out_otherwise(tmp_path):
    """As those that were loaded: fused optimizers go over memory, whatever the order of its values."""
    config, outcomes = training(), []
    for name in ("undisturbed", "resumed"):
        model = new_model()
        transpose_in_memory(model)
        memory = local_memory(tmp_path / name, config)
        trainer = Trainer(model, hasher(), memory, config)
        take_steps(trainer, 2)
        if name == "resumed":
            restore(trainer, state_of(trainer))
        reports = take_steps(trainer, 3)
        outcomes.append([report.loss for report in reports])
    assert outcomes[0] == outcomes[1]


def test_a_state_has_memory_of_its_own(new_trainer):
    trainer = new_trainer(training())
    take_steps(trainer, 1)
    state = state_of(trainer)
    pointers = [tensor.data_ptr() for tensor in state.values() if tensor.numel()]
    assert len(set(pointers)) == len(pointers)
    before = {name: tensor.clone() for name, tensor in state.items()}
    take_steps(trainer, 1)
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in state.values())


def test_the_state_of_another_model_or_optimizer_is_refused_by_the_name_of_a_tensor(new_trainer):
    trainer = new_trainer(training())
    take_steps(trainer, 1)
    state = state_of(trainer)
    wider = dataclasses.replace(MODEL, intermediate_size=80)
    with pytest.raises(ValueError, match=r"checkpoint: model\.layers\.0\.mlp\S+ has the shape .* the model "):
        restore(new_trainer(training(), wider), state)
    with pytest.raises(ValueError, match=r"checkpoint: it lacks model\.mtp\."):
        restore(new_trainer(training(mtp_weight=0.3), WITH_MTP), state)
    muon = new_trainer(training(optimizer="muon"))
    take_steps(muon, 1)
    with pytest.raises(ValueError, match=r"checkpoint: optimizer\.1\.\S+ belongs to no part of this model and opt"):
        restore(new_trainer(training()), state_of(muon))
