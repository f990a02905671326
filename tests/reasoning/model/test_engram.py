"""The Engram layer against contract arithmetic written out position by position in float64 numpy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from reasoning.config.engram import EngramConfig
from reasoning.model.batch import Batch
from reasoning.model.engram import Engram

HIDDEN, LENGTH, EPS = 24, 19, 1e-6
CONFIG = EngramConfig(layer_ids=(0,), n_heads=2, head_dim=8, vocab_size=(101, 101), conv_kernel=4)


def rms(x):
    return x / np.sqrt((x**2).mean() + EPS)


def reference(h, e, kept, layer, gate_kind):
    """h [T, G, d], e [T, C * D] -> [T, G, d]."""
    w = {name: p.detach().double().numpy() for name, p in layer.named_parameters()}
    streams = h.shape[1]
    y = np.zeros_like(h)
    for t in range(len(h)):
        projected = w["wkv.weight"] @ e[t]
        value = projected[streams * HIDDEN :]
        for g in range(streams):
            key = projected[g * HIDDEN : (g + 1) * HIDDEN]
            s = (rms(h[t, g]) * w["q_weight"][g]) @ (rms(key) * w["k_weight"][g]) / np.sqrt(HIDDEN)
            s = np.sign(s) * np.sqrt(max(abs(s), 1e-6)) if gate_kind == "sqrt" else s
            y[t, g] = value / (1 + np.exp(-s)) * kept[t]
    out = y.copy()
    if "conv.weight" in w:
        for t in range(len(h)):
            for g in range(streams):
                mixed = np.zeros(HIDDEN)
                for tap in range(4):
                    earlier = t - (3 - tap) * 3
                    if earlier >= 0:
                        weight = w["conv.weight"][g * HIDDEN : (g + 1) * HIDDEN, 0, tap]
                        mixed += weight * rms(y[earlier, g]) * w["conv.norm_weight"][g]
                out[t, g] += mixed / (1 + np.exp(-mixed))
    return h + out * kept[:, None, None]


@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("gate", ["sqrt", "sigmoid"])
@pytest.mark.parametrize("conv_kernel", [0, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_layer_computes_the_published_formulas(streams, gate, conv_kernel, masked):
    config = dataclasses.replace(CONFIG, gate=gate, conv_kernel=conv_kernel)
    layer = Engram(config, HIDDEN, EPS, streams)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.7)
    h, e = torch.randn(LENGTH, streams, HIDDEN), torch.randn(LENGTH, CONFIG.width)
    kept = torch.rand(LENGTH) > 0.3 if masked else None
    batch = Batch(torch.zeros(LENGTH, dtype=torch.long), (LENGTH,), (0,), kept=kept)
    ones = np.ones(LENGTH) if kept is None else kept.double().numpy()
    expected = reference(h.double().numpy(), e.double().numpy(), ones, layer, gate)
    torch.testing.assert_close(layer(h, e, batch), torch.from_numpy(expected).float(), atol=2e-5, rtol=1e-5)


def test_gradients_reach_rows_streams_and_parameters():
    layer = Engram(CONFIG, HIDDEN, EPS).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.5)
    batch = Batch(torch.zeros(8, dtype=torch.long), (8,), (0,))
    h = torch.randn(8, 1, HIDDEN, dtype=torch.double, requires_grad=True)
    e = torch.randn(8, CONFIG.width, dtype=torch.double, requires_grad=True)
    layer(h, e, batch).square().sum().backward()
    for tensor in (h, e, *layer.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.abs().max() > 0


def test_the_convolution_is_initialised_to_zero():
    layer = Engram(CONFIG, HIDDEN, EPS)
    h, e = torch.randn(6, 1, HIDDEN), torch.randn(6, CONFIG.width)
    batch = Batch(torch.zeros(6, dtype=torch.long), (6,), (0,))
    expected = layer(h, e, batch)
    layer.conv = None
    assert torch.equal(layer(h, e, batch), expected)
