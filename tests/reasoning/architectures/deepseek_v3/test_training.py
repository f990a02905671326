"""What training asks of the backbone: the balance of experts in sequences, how far gates open, and less memory."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from reasoning.architectures.deepseek_v3.backbone import DeepseekV3Backbone
from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.config.engram import EngramConfig
from reasoning.model.batch import Batch
from tests.reasoning.architectures.deepseek_v3.conftest import SMALL

SEQUENCES, LENGTH = 3, 7
MEMORY = EngramConfig(layer_ids=(0, 2), max_ngram_size=3, n_heads=2, head_dim=8, vocab_size=(50, 50), conv_kernel=4)
CONFIG = dataclasses.replace(DeepseekV3Config.from_dict(SMALL), engram=MEMORY)


def backbone(config=CONFIG):
    model = DeepseekV3Backbone(config).initialise(torch.Generator().manual_seed(1)).train()
    for layer in model.layers:
        if layer.engram is not None and layer.engram.conv is not None:
            torch.nn.init.normal_(layer.engram.conv.weight, 0, 0.3, generator=torch.Generator().manual_seed(2))
    return model


def batch():
    generator = torch.Generator().manual_seed(3)
    return Batch.of_whole_sequences(torch.randint(0, SMALL["vocab_size"], (SEQUENCES, LENGTH), generator=generator))


def rows(layer):
    return torch.randn(SEQUENCES * LENGTH, MEMORY.width, generator=torch.Generator().manual_seed(layer))


def balance_by_loop(scores, chosen):
    """Equations 17 to 20, one sequence, expert and token after the other; scores [T, E], chosen [T, top]."""
    tokens, experts = scores.shape
    total = 0.0
    for first in range(0, tokens, LENGTH):
        for expert in range(experts):
            f = p = 0.0
            for t in range(first, first + LENGTH):
                f += experts / (chosen.shape[1] * LENGTH) * (expert in chosen[t])
                p += scores[t, expert] / scores[t].sum() / LENGTH
            total += f * p
    return total / (tokens // LENGTH)


def test_the_balance_loss_of_sequences_is_the_papers_summed_over_layers():
    model, expected = backbone(), 0.0
    given = batch()
    model(given, rows)
    for layer in model.layers[1:]:
        scores = layer.mlp.gate.logits.detach().sigmoid().double().numpy()
        expected += balance_by_loop(scores, layer.mlp.experts.numpy())
    loss = model.sequence_balance(given)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert loss.item() > 1.5  # about one for each layer
    loss.backward()
    assert all(layer.mlp.gate.weight.grad.abs().max() > 0 for layer in model.layers[1:])


def test_experts_that_are_alike_have_a_balance_loss_of_one_a_layer():
    model, given = backbone(), batch()
    for layer in model.layers[1:]:
        torch.nn.init.zeros_(layer.mlp.gate.weight)
    model(given, rows)
    assert model.sequence_balance(given).item() == pytest.approx(2.0)


def test_the_balance_loss_is_that_of_the_last_pass_and_given_once():
    model, given = backbone(), batch()
    model(Batch.of_whole_sequences(torch.full((SEQUENCES, LENGTH), 5)), rows)
    model(given, rows)
    again = backbone()
    again(given, rows)
    assert model.sequence_balance(given).item() == again.sequence_balance(given).item()
    assert float(model.sequence_balance(given)) == 0.0  # each pass holds its graph no longer than needed


def test_nothing_is_kept_for_the_balance_loss_outside_training():
    model, given = backbone().eval(), batch()
    model(given, rows)
    assert [layer.mlp.gate.logits for layer in model.layers[1:]] == [None, None]
    assert float(model.sequence_balance(given)) == 0.0


def test_a_model_learns_balance_from_its_loss_alone():
    model, given = backbone(), batch()
    optimizer = torch.optim.Adam([layer.mlp.gate.weight for layer in model.layers[1:]], lr=0.02)
    losses = []
    for _ in range(30):
        model(given, rows)
        loss = model.sequence_balance(given)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.02


@pytest.mark.parametrize("conv", [0, 4])
def test_gate_means_say_which_part_of_the_values_came_through(conv):
    model = backbone(dataclasses.replace(CONFIG, engram=dataclasses.replace(MEMORY, conv_kernel=conv)))
    seen = {}
    for layer in (model.layers[0], model.layers[2]):
        engram = layer.engram
        engram.register_forward_hook(lambda module, given, out: seen.__setitem__(id(module), (*given[:2], out)))
    model(batch(), rows)
    means = dict(model.gate_means())
    assert sorted(means) == [0, 2]
    for number, mean in means.items():
        engram = model.layers[number].engram
        h, given, out = seen[id(engram)]
        value = engram.wkv(given)[:, -CONFIG.hidden_size :]
        if conv == 0:
            expected = (out[:, 0] - h[:, 0]).detach().norm() / value.norm()
            assert float(mean) == pytest.approx(float(expected), rel=1e-4)
        assert 0.05 < float(mean) < 0.95


def test_gates_are_watched_in_training_only_and_where_there_is_a_memory():
    model = backbone().eval()
    model(batch(), rows)
    assert list(model.gate_means()) == []
    model.train()
    model(batch(), None)
    assert list(model.gate_means()) == []


def gradients(checkpointed):
    model, given = backbone(), batch()
    model.checkpoint_activations = checkpointed
    leaf = {layer: rows(layer).requires_grad_() for layer in MEMORY.layer_ids}
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model(given, leaf.__getitem__)
        loss = model.logits(hidden).square().mean() + 0.1 * model.sequence_balance(given)
    loads = [load.tolist() for _, load in model.expert_loads()]
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return loss.item(), {**found, **{f"rows.{layer}": each.grad for layer, each in leaf.items()}}, loads, sum(kept)


def test_computing_activations_again_gives_the_same_gradients_from_less_memory():
    (loss, expected, loads, kept), (again, found, again_loads, again_kept) = gradients(False), gradients(True)
    assert (again, again_loads) == (loss, loads)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert again_kept < 0.5 * kept


def test_activations_are_kept_outside_training():
    model = backbone().eval()
    model.checkpoint_activations = True
    plain = backbone().eval()
    with torch.inference_mode():
        assert torch.equal(model(batch(), rows), plain(batch(), rows))
