"""Load a model from a directory in Hugging Face layout: config.json, *.safetensors, and an index when sharded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from reasoning.architectures.base import Architecture, Backbone, ModelConfig
from reasoning.architectures.registry import architecture_of, read_model_json
from reasoning.architectures.weights import Weight
from reasoning.checkpoint.files import StoredTensor, open_checkpoint
from reasoning.checkpoint.quantisation import Quantisation, activation_scale, scale_of
from reasoning.config.checks import brief
from reasoning.model.cpu_weights import order_for_cpu, pack_for_cpu

_MOST_MISSING = 1000
"""Tensors that may be missing before it no longer matters how many there are."""


def load_model(
    model_dir: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    read_only: bool = False,
) -> Backbone:
    """Load a checkpoint of any known architecture, with or without Engram layers.

    Nothing is allocated before the configuration is found to fit the headers of the files. Weights in fp8 are restored
    to `dtype`. Memory tables are left where they are.

    Args:
        model_dir: holds config.json and the weights.
        device: where the model is to run.
        dtype: precision of all weights but those that an architecture keeps in fp32.
        read_only: rearrange the weights further for a CPU, after which they can neither be saved nor trained.

    Raises:
        ValueError: a file is missing or damaged, the configuration is not supported, or the two do not fit each other.
    """
    raw = read_model_json(model_dir)
    architecture = architecture_of(raw)
    config = architecture.read_config(raw)
    quantisation = Quantisation.from_config(raw)
    with open_checkpoint(Path(model_dir)) as stored:
        config = architecture.settle(config, stored)
        weights = _match(architecture, config, stored, quantisation)
        model = _empty(architecture, config, torch.device(device), dtype)
        _fill(model, weights, stored, quantisation)
    if read_only:
        pack_for_cpu(model)
    return model.eval()


def _match(
    architecture: Architecture[Any],
    config: ModelConfig,
    stored: Mapping[str, StoredTensor],
    quantisation: Quantisation,
) -> dict[str, Weight]:
    """Hold a configuration against the headers of the files; costs little, whatever sizes the configuration claims.

    Returns:
        The tensors to read, by name.

    Raises:
        ValueError: a tensor is missing, unknown, or has the wrong shape or type.
    """
    found: dict[str, Weight] = {}
    copies: set[str] = set()
    missing: list[str] = []
    for weight in architecture.weights(config, stored):
        if weight.copy:
            copies.add(weight.name)
        elif weight.name in stored:
            quantisation.check(stored[weight.name], weight.shape, stored)
            found[weight.name] = weight
        else:
            missing.append(weight.name)
        if len(missing) == _MOST_MISSING:
            raise _absent(f"{_MOST_MISSING} tensors or more", missing, config)
    known = found.keys() | copies
    _refuse_unknown([name for name in stored if name not in known and not architecture.ignores(config, name)], stored)
    if missing:
        raise _absent(f"{len(missing)} tensors", missing, config)
    return found


def _absent(count: str, names: list[str], config: ModelConfig) -> ValueError:
    return ValueError(
        f"checkpoint: {count} are missing, such as {', '.join(names[:3])}; is a shard file absent, or is this "
        f"config.json, with num_hidden_layers={config.num_hidden_layers}, of another model?"
    )


def _refuse_unknown(names: list[str], stored: Mapping[str, StoredTensor]) -> None:
    """Raise ValueError if there is a name that belongs neither to the model nor to a weight as its scale."""
    scales = {scale_of(name, stored) for name in stored} if names else set()
    for name in names:
        if 0 in stored[name].shape:  # transformers writes those of no shared experts
            continue
        if activation_scale(name):
            raise ValueError(
                f"checkpoint: tensor {brief(name)} is a scale of activations; quantisation with static activation "
                "scales is not supported, use a checkpoint with dynamic ones"
            )
        if name not in scales:
            raise ValueError(
                f"checkpoint: tensor {brief(name)} belongs to no layer of this config.json; do they match?"
            )


def _empty(architecture: Architecture[Any], config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Backbone:
    """Make a model whose weights hold nothing yet, without ever allocating them in another form."""
    with torch.device("meta"):
        model = architecture.build(config).to(dtype)
        for module in model.precise_modules():
            module.float()
        if device.type == "cpu":
            order_for_cpu(model)
    model.to_empty(device=device)
    model.tie_weights()
    return model


@torch.no_grad()
def _fill(
    model: Backbone, weights: Mapping[str, Weight], stored: Mapping[str, StoredTensor], quantisation: Quantisation
) -> None:
    """Read the tensors in the order in which they are stored, one at a time."""
    state = model.state_dict()
    for name, tensor in stored.items():
        if name in weights:
            weights[name].fill(state, quantisation.read(tensor, stored))
