"""Save a model in Hugging Face layout: config.json, *.safetensors, and an index when sharded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from reasoning.architectures.base import Backbone
from reasoning.architectures.registry import architecture_of
from reasoning.checkpoint.files import INDEX, SINGLE


def save_model(
    model: Backbone, model_dir: str | Path, dtype: torch.dtype = torch.bfloat16, shard_bytes: int = 4 << 30
) -> None:
    """Write config.json and the weights, in files of at most `shard_bytes` where tensors allow it.

    Args:
        model: its weights are as `load_model` made them, or as an optimizer left them.
        model_dir: made if necessary; an earlier save there is replaced.
        dtype: precision of all tensors but those that an architecture keeps in fp32.
        shard_bytes: more are divided among several files.
    """
    directory = Path(model_dir)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = _tensors(model, dtype)
    config = model.config.to_dict() | {"torch_dtype": str(dtype).removeprefix("torch.")}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    groups = _split(tensors, shard_bytes)
    if len(groups) == 1:
        save_file(tensors, directory / SINGLE, metadata={"format": "pt"})
        (directory / INDEX).unlink(missing_ok=True)  # of an earlier save: readers would follow it
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file({name: tensors[name] for name in names}, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    (directory / SINGLE).unlink(missing_ok=True)


def _tensors(model: Backbone, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name; no two share memory, which safetensors refuses."""
    state, config = model.state_dict(), model.config
    tensors: dict[str, Tensor] = {}
    for weight in architecture_of(config.to_dict()).weights(config):
        tensor = weight.gather(state).to(torch.float32 if weight.fp32 else dtype).contiguous().cpu()
        tensors[weight.name] = tensor.clone() if weight.copy else tensor
    return tensors


def _split(tensors: Mapping[str, Tensor], shard_bytes: int) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    return groups
