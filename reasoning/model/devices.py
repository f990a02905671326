"""Where a model runs and in which precision, and how the host's tensors get there."""

from __future__ import annotations

import torch
from torch import Tensor

DEVICES = ("auto", "cpu", "cuda")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def choose_device(name: str) -> torch.device:
    """Return the device that one of `DEVICES` stands for: "auto" takes a GPU if there is one.

    "cuda" is the current CUDA device; CUDA_VISIBLE_DEVICES chooses among several.

    Raises:
        ValueError: there is no such device.
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
    """Return the dtype of weights and cache that "auto" or one of `DTYPES` stands for: bf16 on a GPU, else fp32."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype: {name!r} is unknown; use one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host's to a device, on the current stream and without waiting for it.

    The copy reads from pinned memory, which torch's allocator hands out again only once the copy is done.
    """
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
