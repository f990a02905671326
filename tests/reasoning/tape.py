"""A recorder that plays CUDA graphs on a CPU: it writes down what torch computes, and computes it again in place."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

SYNCHRONISING = {"_local_scalar_dense", "nonzero", "_unique2", "equal", "masked_select"}
"""Operators during which the host reads what the device computes: a capture fails on them."""


class Tape(TorchDispatchMode):
    """Operators with the very tensors that they read and wrote."""

    def __init__(self):
        super().__init__()
        self.operators = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in SYNCHRONISING, f"{name} cannot be captured"
        results = func(*args, **(kwargs or {}))
        read = {t.untyped_storage().data_ptr() for t in tensors(args, kwargs)}
        made = [t for t in tensors(results) if t.untyped_storage().data_ptr() not in read]  # neither views nor in place
        self.operators.append((func, args, kwargs or {}, made))
        return results

    def poison(self):
        """A capture computes nothing: nobody may rely on what this one did."""
        for _, _, _, made in self.operators:
            for tensor in made:
                if tensor.is_floating_point():
                    tensor.fill_(float("nan"))

    def replay(self):
        for func, args, kwargs, made in self.operators:
            results = func(*args, **kwargs)
            for place, value in zip(made, tensors(results) if made else (), strict=True):
                place.copy_(value)


def tensors(*values):
    return [value for value in tree_flatten(values)[0] if isinstance(value, torch.Tensor)]


class TapeRecorder:
    """See `reasoning.engine.graphs.Recorder`."""

    def __init__(self):
        self.tapes = []

    def begin(self):
        self.tapes.append(Tape())
        self.tapes[-1].__enter__()

    def end(self):
        tape = self.tapes[-1]
        tape.__exit__(None, None, None)
        tape.poison()
        return tape.replay
