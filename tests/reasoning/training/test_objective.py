"""The loss, put together by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reasoning.model.batch import Batch
from reasoning.training.objective import Objective
from tests.reasoning.training.small import BATCH, WITH_MTP, new_model, sequences, training


@pytest.fixture
def scored():
    mask = torch.ones(BATCH, 25, dtype=torch.bool)
    mask[1, -6:] = False
    mask[2, 5] = False
    return mask


def losses(model, tokens, scored):
    """Mean cross-entropy of the next token, and of the one after it, one position after the other."""
    hidden = model(Batch.of_whole_sequences(tokens[:, :-1]))
    ahead = model.predict_ahead(hidden, Batch.of_whole_sequences(tokens[:, 1:]), None)
    found = []
    for states, distance in ((hidden, 1), (ahead, 2)):
        logits = model.logits(states).unflatten(0, (BATCH, -1))
        places = [(b, i) for b in range(BATCH) for i in range(25 - distance) if scored[b, i + distance]]
        each = [F.cross_entropy(logits[b, i], tokens[b, i + distance]).item() for b, i in places]
        found.append(np.mean(each))
    return found


def test_the_loss_is_the_sum_of_its_parts_over_scored_tokens(scored):
    model, tokens = new_model(WITH_MTP).train(), torch.from_numpy(sequences(1).tokens)
    entropy, ahead = losses(model, tokens, scored)
    balance = model.sequence_balance(Batch.of_whole_sequences(tokens[:, :-1])).item()
    assert balance > 2.5  # about one for each mixture, that of the layer ahead included
    config = training(mtp_weight=0.3, sequence_balance=0.01)
    loss, told = Objective(model, config)(tokens, scored, None)
    assert told.item() == pytest.approx(entropy, rel=1e-5)
    assert not told.requires_grad
    assert loss.item() == pytest.approx(entropy + 0.3 * ahead + 0.01 * balance, rel=1e-5)
    alone, _ = Objective(model, training())(tokens, scored, None)
    assert alone.item() == pytest.approx(entropy, rel=1e-5)
