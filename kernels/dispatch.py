"""Kernel or reference: one decision for all of them, by device, dtype and the environment variable ENGRAM_KERNELS.

`auto` (the default) takes kernels for CUDA tensors of dtypes they read where Triton is installed, and torch references
otherwise; `triton` takes kernels or fails; `torch` takes references. Kernels run on the current CUDA device, or on CPU
tensors in Triton's interpreter, which is for tests: TRITON_INTERPRET=1 must be set before Triton is first imported.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

VARIABLE = "ENGRAM_KERNELS"
MODES = ("auto", "triton", "torch")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def use_triton(*tensors: Tensor) -> bool:
    """Whether to run the kernel on `tensors` rather than its torch reference.

    Raises:
        ValueError: ENGRAM_KERNELS has an unknown value, or is `triton` where no kernel can run.
    """
    mode = os.environ.get(VARIABLE, "auto")
    if mode not in MODES:
        raise ValueError(f"{VARIABLE}={mode!r} is unknown; use auto, triton or torch")
    if mode == "torch" or (mode == "auto" and not tensors[0].is_cuda):
        return False
    obstacle = _obstacle(tensors)
    if obstacle and mode == "triton":
        raise ValueError(f"{VARIABLE}=triton: {obstacle}, or set {VARIABLE}=auto")
    return obstacle is None


def forced() -> bool:
    """Whether ENGRAM_KERNELS forces kernels."""
    return os.environ.get(VARIABLE) == "triton"


def _obstacle(tensors: tuple[Tensor, ...]) -> str | None:
    """Why no kernel can run on these tensors, with the remedy; None if one can."""
    if not _installed():
        return "Triton is not installed; run `pip install triton`"
    if not _runs_on(tensors[0].device):
        return f"no kernel runs on {tensors[0].device}; move model and batch to CUDA"
    foreign = [tensor.dtype for tensor in tensors if tensor.is_floating_point() and tensor.dtype not in _FLOATS]
    return f"no kernel reads {foreign[0]}; use float32, bfloat16 or float16" if foreign else None


def _runs_on(device: torch.device) -> bool:
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _installed() -> bool:
    return find_spec("triton") is not None
