"""Which parameters decay, and Muon on each matrix against torch's on separate ones."""

from __future__ import annotations

import re

import pytest
import torch

from reasoning.training.optimizers import BackboneOptimizer
from tests.reasoning.training.small import MODEL, WITH_MTP, new_model, take_steps, training

RATES = (1e-2, 7e-3, 3e-3)


def named(config=MODEL):
    model = new_model(config)
    return model, list(model.named_parameters())


def with_gradients(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def names_of(model, optimizer):
    names = {id(p): re.sub(r"layers\.\d+\.", "", name) for name, p in model.named_parameters()}
    return {names[id(p)] for group in optimizer.param_groups for p in group["params"] if id(p) in names}


def test_decay_spares_norms_gates_and_convolutions():
    _, parameters = named()
    decayed, spared = BackboneOptimizer(parameters, training()).optimizers[0].param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    names = {id(p): re.sub(r"layers\.\d+\.", "", name) for name, p in parameters}
    spared_names = {names[id(p)] for p in spared["params"]}
    assert {"engram.conv.weight", "engram.conv.norm_weight", "engram.q_weight", "engram.k_weight"} < spared_names
    assert all("norm" in name or "engram" in name for name in spared_names)
    assert {"embed_tokens.weight", "engram.wkv.weight", "mlp.gate_up", "mlp.gate.weight"} < {
        names[id(p)] for p in decayed["params"]
    }
    assert len(decayed["params"]) + len(spared["params"]) == len(parameters)


def test_parameters_without_gradients_are_left_out():
    model, parameters = named()
    model.embed_tokens.requires_grad_(False)
    optimizer = BackboneOptimizer(parameters, training())
    held = [p for group in optimizer.optimizers[0].param_groups for p in group["params"]]
    assert len(held) == len(parameters) - 1


def test_muon_takes_every_hidden_matrix_and_adamw_the_rest():
    model, parameters = named(WITH_MTP)
    adamw, muon = BackboneOptimizer(parameters, training(optimizer="muon", mtp_weight=0.3)).optimizers
    assert isinstance(muon, torch.optim.Muon)
    by_adamw = names_of(model, adamw)
    assert {"embed_tokens.weight", "mlp.gate.weight", "norm.weight", "engram.conv.weight"} < by_adamw
    assert not {name for name in by_adamw if "proj" in name or "gate_up" in name or "wkv" in name}
    assert all(each.ndim == 2 for group in muon.param_groups for each in group["params"])
    taken = sum(each.numel() for group in muon.param_groups for each in group["params"])
    spared = sum(p.numel() for group in adamw.param_groups for p in group["params"])
    assert taken + spared == sum(p.numel() for _, p in parameters)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_steps_are_those_of_torch_on_separate_matrices(kind):
    """Of a stack of experts, each matrix is orthogonalised by itself."""
    _, parameters = named()
    optimizer = BackboneOptimizer(parameters, training(optimizer=kind))
    copies = {name: p.detach().clone() for name, p in parameters}
    matrices, decayed, spared, parts = [], [], [], {}
    for name, value in copies.items():
        vector = value.ndim == 1 or any(part in name for part in ("conv", "q_weight", "k_weight"))
        hidden = not vector and not any(part in name for part in ("embed_tokens", "lm_head", "mlp.gate."))
        if kind == "muon" and hidden:
            parts[name] = [torch.nn.Parameter(each.clone()) for each in (value if value.ndim == 3 else [value])]
            matrices += parts[name]
        else:
            parts[name] = [torch.nn.Parameter(value)]
            (spared if vector else decayed).extend(parts[name])
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=True,
    )
    references = [adamw]
    if matrices:
        references.append(torch.optim.Muon(matrices, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"))
    assert len(parts) > 10
    for seed, rate in enumerate(RATES):
        with_gradients(parameters, seed)
        for name, parameter in parameters:
            stack = parameter.grad if len(parts[name]) > 1 else [parameter.grad]
            for part, gradient in zip(parts[name], stack, strict=True):
                part.grad = gradient.clone().view_as(part)
        optimizer.step(rate)
        for reference in references:
            for group in reference.param_groups:
                group["lr"] = rate
            reference.step()
    assert all(parameter.grad is None for _, parameter in parameters)
    for name, parameter in parameters:
        expected = torch.stack([part.detach() for part in parts[name]]).view_as(parameter)
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=0, msg=name)
        assert not torch.equal(parameter.detach(), new_model().get_parameter(name).detach()), name


def test_a_model_learns_under_muon(new_trainer):
    trainer = new_trainer(training(optimizer="muon"))
    reports = take_steps(trainer, 25)
    assert reports[-1].loss < 0.75 * reports[0].loss
