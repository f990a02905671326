"""Choose a model's device and precision, and copy tensors of the host to the device."""

from __future__ import annotations

import torch
from torch import Tensor

DEVICES = ("auto", "cpu", "cuda")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def choose_device(name: str) -> torch.device:
    """Return the device that one of `DEVICES` stands for: "auto" takes a GPU if there is one.

    "cuda" is the current CUDA device; CUDA_VISIBLE_DEVICES chooses among several.

    Raises:
        ValueError: the name is unknown, or the device does not exist.
    """
    if name not in DEVICES:
        raise ValueError(f"device: {name!r} is unknown; use one of {', '.join(DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        why = "torch sees no GPU" if torch.version.cuda else "this torch is built without CUDA"
        raise ValueError(f"device: 'cuda' is not there, {why}; use auto or cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of weights and cache for one of `DTYPES` or "auto", which is bf16 on a GPU and fp32 elsewhere.

    Raises:
        ValueError: the name is unknown.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype: {name!r} is unknown; use one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device, on the current stream and without waiting for the copy.

    The copy reads from pinned memory, which torch's allocator reuses only after the copy is done.
    """
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
