"""What a trainer has learned, as named tensors: weights, buffers, and the state of the backbone's optimizers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from reasoning.training.parallel import like, whole
from reasoning.training.trainer import Trainer

_MODEL, _OPTIMIZER = "model.", "optimizer."


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """Return the state as tensors on the CPU, each of which has memory of its own; all workers must call this."""
    state = {_MODEL + name: whole(tensor) for name, tensor in _weights(trainer.model)}
    for name, _, values in trainer.optimizer.tensors():
        state |= {f"{_OPTIMIZER}{name}.{key}": whole(value) for key, value in values.items()}
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}


@torch.no_grad()
def restore(trainer: Trainer, state: Mapping[str, Tensor]) -> None:
    """Give a trainer the state of another of the same model and optimizer; all workers must call this.

    Raises:
        ValueError: the state is that of another model or another optimizer; names the first tensor that differs.
    """
    left = set(state)
    for name, tensor in _weights(trainer.model):
        found = _take(state, left, _MODEL + name, tuple(tensor.shape))
        tensor.copy_(like(found, tensor))
    for name, parameter, values in trainer.optimizer.tensors():
        prefix = f"{_OPTIMIZER}{name}."
        for key in [key for key in sorted(left) if key.startswith(prefix)]:
            stored = state[key]
            left.discard(key)
            if stored.shape == parameter.shape:  # laid out in memory like it, which fused optimizers rely on
                stored = torch.empty_like(parameter, dtype=stored.dtype).copy_(like(stored, parameter))
            values[key.removeprefix(prefix)] = stored.clone() if stored is state[key] else stored
    if left:
        raise ValueError(f"checkpoint: {min(left)} belongs to no part of this model and optimizer; use its own config")


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, each once, although modules may share one."""
    yield from model.named_parameters()
    stored = model.state_dict()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in stored)


def _take(state: Mapping[str, Tensor], left: set[str], name: str, shape: tuple[int, ...]) -> Tensor:
    if name not in state:
        raise ValueError(f"checkpoint: it lacks {name}; use the checkpoint of this model")
    if tuple(state[name].shape) != shape:
        raise ValueError(f"checkpoint: {name} has the shape {list(state[name].shape)}, the model {list(shape)}")
    left.discard(name)
    return state[name]
