"""A tiny model learns a little text, repeatably, in parts or as a whole, with balanced experts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from memory_service import InvalidRequest, LocalMemory
from reasoning.corpora.tokens import Sequences
from reasoning.model.batch import Batch
from reasoning.training.rows import FrozenTables
from reasoning.training.trainer import Trainer, TrainingError
from tests.reasoning.training.small import (
    BATCH,
    MODEL,
    WINDOW,
    WITH_MTP,
    hasher,
    new_model,
    sequences,
    take_steps,
    training,
    values_of,
    write_tables,
)


def losses(reports):
    return [report.loss for report in reports]


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def loads_of(trainer):
    return list(trainer.model.expert_loads())


def test_the_loss_falls_and_the_tables_and_routers_took_part(new_trainer):
    trainer = new_trainer(training())
    before, rows = weights(trainer), values_of(trainer.memory, 0)
    reports = take_steps(trainer, 40)
    first, last = (np.mean(losses(part)) for part in (reports[:3], reports[-5:]))
    assert abs(first - np.log(257)) < 0.4  # knows nothing yet
    assert last < 0.6 * first
    for name, values in values_of(trainer.memory, 40).items():
        assert np.abs(values - rows[name]).max() > 1e-2
    assert [name for name, tensor in trainer.model.state_dict().items() if torch.equal(before[name], tensor)] == []


def test_a_seed_repeats_every_loss(new_trainer):
    found = [losses(take_steps(new_trainer(training(), seed=seed), 4, seed)) for seed in (0, 0, 1)]
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_requesting_rows_of_the_next_step_early_changes_nothing(new_trainer):
    ahead, apart = (new_trainer(training("adam")) for _ in range(2))
    assert losses(take_steps(ahead, 5, ahead=True)) == losses(take_steps(apart, 5, ahead=False))


def test_a_report_says_what_a_step_did(new_trainer):
    trainer = new_trainer(training())
    reports = take_steps(trainer, 3)
    assert [report.step for report in reports] == [1, 2, 3]
    assert trainer.step_number == 3
    assert trainer.seconds == pytest.approx(sum(report.seconds for report in reports), rel=0.2)
    for report in reports:
        assert report.tokens == BATCH * WINDOW
        assert report.rate == pytest.approx(5e-3 * trainer.config.rate((report.step - 1) / 40))
        assert report.gradient_norm > 0
        assert 0 < report.rows_wait_s + report.push_wait_s < report.seconds
        assert 1 <= report.expert_load <= MODEL.n_routed_experts / MODEL.num_experts_per_tok
        assert sorted(report.gates) == [0, 2]
        assert all(0 < gate < 1 for gate in report.gates.values())


def test_parts_of_a_batch_add_up_to_the_batch(new_trainer):
    whole, halves = (new_trainer(training("adagrad", accumulation=parts)) for parts in (1, 2))
    expected, found = take_steps(whole, 8), take_steps(halves, 8)
    np.testing.assert_allclose(losses(found), losses(expected), rtol=1e-4)
    np.testing.assert_allclose(found[0].gradient_norm, expected[0].gradient_norm, rtol=1e-5)
    assert [report.expert_load for report in found[:2]] == [report.expert_load for report in expected[:2]]
    for name, values in values_of(whole.memory, 8).items():
        np.testing.assert_allclose(values_of(halves.memory, 8)[name], values, rtol=0, atol=2e-3)


@pytest.mark.parametrize("balance", [0.0, 1e-2])
def test_computing_activations_again_gives_the_same_bits(new_trainer, balance):
    kept, again = (
        new_trainer(training(activation_checkpointing=on, accumulation=2, sequence_balance=balance))
        for on in (False, True)
    )
    expected, found = take_steps(kept, 5), take_steps(again, 5)
    assert losses(found) == losses(expected)
    assert [r.gradient_norm for r in found] == [r.gradient_norm for r in expected]
    for name, values in values_of(kept.memory, 5).items():
        np.testing.assert_array_equal(values_of(again.memory, 5)[name], values)


def test_products_in_bf16_stay_close_with_weights_in_fp32(new_trainer):
    exact, rounded = (new_trainer(training(precision=precision)) for precision in ("fp32", "bf16"))
    expected, found = losses(take_steps(exact, 12)), losses(take_steps(rounded, 12))
    np.testing.assert_allclose(found, expected, rtol=0.03)
    assert found != expected
    assert {parameter.dtype for parameter in rounded.model.parameters()} == {torch.float32}


def test_the_correction_bias_moves_towards_experts_with_too_few_tokens(new_trainer):
    trainer = new_trainer(training(balance_rate=0.25))
    take_steps(trainer, 1)
    loads = list(trainer.model.expert_loads())
    assert len(loads) == 2
    for (bias, load), moe in zip(loads, [layer.mlp for layer in trainer.model.layers[1:]], strict=True):
        assert bias is moe.gate.e_score_correction_bias
        assert load.sum() == BATCH * WINDOW * MODEL.num_experts_per_tok
        assert bias.tolist() == (0.25 * (load.float().mean() - load).sign()).tolist()


def imbalance(trainer):
    """The share of the busiest expert over the end of a run, relative to an even one, by layer."""
    with torch.no_grad():
        for layer in trainer.model.layers[1:]:
            layer.mlp.gate.e_score_correction_bias += torch.tensor([0.2, 0.2, 0.0, 0.0])  # all tokens go to two experts
    loads = []
    for step in range(1, 25):
        trainer.step(sequences(step), trainer.config.rate(step / 25))
        loads.append(torch.stack([load for _, load in loads_of(trainer)]).double())
    late = torch.stack(loads[-8:]).mean(0)
    return (late.max(-1).values / late.mean(-1)).tolist()


def test_balancing_evens_out_the_load(new_trainer):
    assert min(imbalance(new_trainer(training(steps=24, balance_rate=0.0)))) > 1.8
    assert max(imbalance(new_trainer(training(steps=24, balance_rate=0.02)))) < 1.35


@pytest.mark.slow
def test_a_step_by_kernels_is_that_by_torch(new_trainer, by_torch_and_by_kernels):
    def step():
        trainer = new_trainer(training(batch=2))
        report = trainer.step(sequences(1, 2, window=7), 1.0)
        return report, values_of(trainer.memory, 1), weights(trainer)

    (expected, rows, state), (found, got_rows, got_state) = by_torch_and_by_kernels(step)
    assert abs(found.loss - expected.loss) < 1e-5
    assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-4)
    for name, values in rows.items():  # Adam's first step is as long as the learning rate, 5e-3 and more
        np.testing.assert_allclose(got_rows[name], values, rtol=0, atol=1e-4)
    assert max((got_state[name] - tensor).abs().max() for name, tensor in state.items()) < 1e-4


def test_no_n_gram_looks_into_another_sequence_or_document(new_trainer):
    trainer, tokens = new_trainer(training()), np.arange(40, 48)
    documents = np.array([[5] * 4 + [6] * 4, [6] * 4 + [2] * 4])
    rows = trainer._hash(Sequences(np.stack([tokens, tokens]), documents))
    for layer, found in rows.items():
        alone = [hasher().hash(part)[layer] for part in (tokens[:4], tokens[4:7])]
        assert found.tolist() == np.concatenate(alone * 2).tolist()


def test_padding_is_neither_scored_nor_seen_by_n_grams(new_trainer):
    trainer = new_trainer(training())
    batch = sequences(1)
    padded = Sequences(batch.tokens.copy(), batch.documents.copy())
    padded.documents[:, -9:] = -1
    other = Sequences(padded.tokens.copy(), padded.documents)
    other.tokens[:, -9:] = 7
    found = [trainer._hash(each) for each in (padded, other)]
    assert all(np.array_equal(found[0][layer], found[1][layer]) for layer in found[0])
    shorter = Sequences(batch.tokens[:, :-9], batch.documents[:, :-9])
    reports = [new_trainer(training()).step(each, 1.0) for each in (padded, other, shorter)]
    assert reports[0].loss == pytest.approx(reports[2].loss, rel=1e-5)
    assert reports[1].loss == pytest.approx(reports[2].loss, rel=1e-5)


def test_frozen_tables_stay_as_they_are_and_get_no_gradients(new_trainer, tmp_path):
    tables = LocalMemory.load(str(write_tables(tmp_path / "frozen", training().tables.optimizer).uri))
    trainer = Trainer(new_model(), hasher(), FrozenTables(tables), training(frozen=True))
    before = values_of(trainer.memory, 0)
    learning = take_steps(new_trainer(training()), 1)
    reports = take_steps(trainer, 12)
    assert reports[0].loss == learning[0].loss
    assert reports[0].gradient_norm < learning[0].gradient_norm
    assert losses(reports)[-1] < 0.9 * losses(reports)[0]
    assert not trainer._rows_of(sequences(1))._leaf(0).requires_grad
    for name, values in values_of(trainer.memory, 12).items():
        np.testing.assert_array_equal(values, before[name])


@pytest.mark.parametrize("where", ["weight", "gradient"])
def test_a_step_that_is_not_finite_is_refused_by_number_and_changes_nothing(new_trainer, where):
    trainer = new_trainer(training(accumulation=2))
    take_steps(trainer, 2)
    norm = trainer.model.norm.weight
    if where == "weight":
        with torch.no_grad():
            norm[3] = float("nan")
    else:
        norm.register_hook(lambda gradient: gradient * float("inf"))
    before, rows, biases = weights(trainer), values_of(trainer.memory, 2), [b.clone() for b, _ in loads_of(trainer)]
    with pytest.raises(TrainingError, match=r"step 3: the (loss|gradient norm) is (nan|inf).*nothing of the step is"):
        trainer.step(sequences(3), 1.0)
    assert trainer.step_number == 2
    for name, tensor in trainer.model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)
    assert all(torch.equal(bias, old) for (bias, _), old in zip(loads_of(trainer), biases, strict=True))
    for name, values in values_of(trainer.memory, 2).items():
        np.testing.assert_array_equal(values, rows[name])


def test_gradients_of_rows_that_are_not_finite_are_refused_by_number_and_change_nothing(new_trainer):
    """By the memory, which has them before the trainer knows their norm."""
    trainer = new_trainer(training())
    take_steps(trainer, 2)
    before, rows = weights(trainer), values_of(trainer.memory, 2)
    expand = trainer.model.layers[0].engram.wkv
    expand.register_full_backward_hook(lambda module, given, out: (given[0] * float("nan"),))
    with pytest.raises((TrainingError, InvalidRequest), match=r"step 3.*finite"):
        trainer.step(sequences(3), 1.0)
    assert trainer.step_number == 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())
    for name, values in values_of(trainer.memory, 2).items():
        np.testing.assert_array_equal(values, rows[name])


def dense_gradients(trainer, batch):
    """Gradients by a plain backward pass: those of parameters by name, those of whole tables by table."""
    tables = {
        name: torch.from_numpy(values).requires_grad_()
        for name, values in values_of(trainer.memory, trainer.step_number).items()
    }
    ids = trainer._hash(batch)
    model = new_model()
    model.load_state_dict(trainer.model.state_dict())
    logits = forward(model, batch, lambda layer: tables[trainer.specs[layer].name][ids[layer]].flatten(1))
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch.tokens[:, 1:].ravel())).backward()
    return {n: p.grad for n, p in model.named_parameters()}, {name: table.grad for name, table in tables.items()}


def forward(model, batch, rows):
    return model.train().logits(model(Batch.of_whole_sequences(torch.from_numpy(batch.tokens[:, :-1])), rows))


def test_the_norm_counts_the_gradients_of_the_tables_and_clips_all_by_it(new_trainer):
    clipped, free = (new_trainer(training("sgd", clip_norm=clip), std=0.5) for clip in (0.05, 1e9))
    batch, before = sequences(1), values_of(clipped.memory, 0)
    backbone, tables = dense_gradients(clipped, batch)
    squares = [float(gradient.double().square().sum()) for gradient in [*backbone.values(), *tables.values()]]
    expected = sum(squares) ** 0.5
    assert sum(squares[-2:]) > 1e-4 * sum(squares)  # otherwise the tables would not show
    for trainer in (clipped, free):
        assert trainer.step(batch, 1.0).gradient_norm == pytest.approx(expected, rel=1e-5)
    for name, gradient in tables.items():
        change = before[name] - values_of(clipped.memory, 1)[name]
        scale = 5e-3 * clipped.config.tables.rate_factor * 0.05 / expected
        np.testing.assert_allclose(change, scale * gradient.numpy(), rtol=0, atol=1e-7)
        unclipped = before[name] - values_of(free.memory, 1)[name]
        np.testing.assert_allclose(change, unclipped * 0.05 / expected, rtol=0, atol=1e-7)


def test_prediction_of_the_token_after_the_next_is_learned_by_its_own_layer(new_trainer):
    trainer = new_trainer(training(mtp_weight=0.5), WITH_MTP)
    before = weights(trainer)
    ahead = []
    entropy = trainer._objective._entropy_ahead
    trainer._objective._entropy_ahead = lambda *arguments: ahead.append(entropy(*arguments)) or ahead[-1]
    take_steps(trainer, 40)
    told = [each.item() for each in ahead]
    assert abs(told[0] - np.log(257)) < 0.4
    assert np.mean(told[-5:]) < 0.7 * told[0]
    own = [name for name in before if name.startswith("mtp.")]
    assert len(own) > 8
    assert [name for name in own if torch.equal(before[name], trainer.model.state_dict()[name])] == []


def test_the_layer_of_multi_token_prediction_is_left_alone_unless_it_has_a_weight(new_trainer):
    trainer = new_trainer(training(), WITH_MTP)
    before = weights(trainer)
    take_steps(trainer, 2)
    own = [name for name in before if name.startswith("mtp.")]
    assert [name for name in own if not torch.equal(before[name], trainer.model.state_dict()[name])] == []
    assert len(loads_of(trainer)) == 2  # those of the backbone


def test_a_weight_of_multi_token_prediction_without_its_layer_is_refused(new_trainer):
    with pytest.raises(ValueError, match=r"mtp_weight: 0.3, but the model has no layer of multi-token prediction"):
        new_trainer(training(mtp_weight=0.3))


def test_a_model_without_engram_layers_is_refused(new_trainer):
    with pytest.raises(ValueError, match="engram_layer_ids: a model without Engram layers has no tables to train"):
        new_trainer(training(), dataclasses.replace(MODEL, engram=None))


def test_a_batch_of_another_size_is_refused(new_trainer):
    with pytest.raises(ValueError, match=r"batch: 3 sequences for this worker, expected 4"):
        new_trainer(training()).step(sequences(1, 3), 1.0)
