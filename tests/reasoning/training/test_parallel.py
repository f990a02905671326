"""Workers that share a backbone, as copies or in parts: the same training, and states that fit all of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from reasoning.training.state import restore, state_of
from reasoning.training.trainer import Trainer
from tests.reasoning.training.ranks import run_ranks
from tests.reasoning.training.small import BATCH, WINDOW, hasher, local_memory, new_model, take_steps, training


@pytest.mark.slow
def test_parts_of_the_layers_train_like_copies_of_them(tmp_path):
    run_ranks(2, "divided", tmp_path)
    outcome = json.loads((tmp_path / "divided.json").read_text())
    copies = outcome.pop("ddp")
    assert copies[-1][0] < copies[0][0]
    assert {tokens for *_, tokens in copies} == {BATCH * WINDOW}
    weights = torch.load(tmp_path / "ddp.pt")
    alone = new_model().state_dict()
    assert max((weights[f"model.{name}"] - tensor).abs().max() for name, tensor in alone.items() if "head" not in name)
    assert len(outcome) == 4
    for name, steps in outcome.items():
        np.testing.assert_allclose(np.array(steps), np.array(copies), rtol=1e-4, err_msg=name)
        found = torch.load(tmp_path / f"{name}.pt")
        assert found.keys() == weights.keys()
        for key, tensor in weights.items():
            # Where a gradient is next to zero, rounding decides how far Adam goes.
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-3, msg=f"{name} {key}")


@pytest.mark.slow
def test_workers_resume_bit_by_bit_and_a_worker_alone_takes_over_their_state(tmp_path):
    run_ranks(2, "resumed", tmp_path)
    assert (tmp_path / "resumed-0").exists()
    assert (tmp_path / "resumed-1").exists()
    config = training()
    for name in ("ddp", "fsdp2"):
        state = torch.load(tmp_path / f"{name}-state.pt")
        trainer = Trainer(new_model(seed=9), hasher(), local_memory(tmp_path / f"{name}-t", config), config, step=5)
        restore(trainer, state)
        again = state_of(trainer)
        assert again.keys() == state.keys()
        assert [key for key, tensor in state.items() if not torch.equal(tensor, again[key])] == []


def test_a_worker_alone_needs_no_group(new_trainer):
    trainer = new_trainer(training(parallel="fsdp2"))
    assert (trainer.workers.rank, trainer.workers.count) == (0, 1)
    assert take_steps(trainer, 1)[0].loss > 0
