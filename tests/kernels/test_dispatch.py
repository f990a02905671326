"""Which of kernel and reference is chosen, and what is said where neither can be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.dispatch import use_triton

ROOT = Path(__file__).parents[2]


def test_the_cpu_takes_references_unless_kernels_are_forced(monkeypatch):
    monkeypatch.delenv("ENGRAM_KERNELS", raising=False)
    assert not use_triton(torch.ones(1))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not use_triton(torch.ones(1))
    monkeypatch.setenv("ENGRAM_KERNELS", "triton")
    assert use_triton(torch.ones(1), torch.ones(1, dtype=torch.uint8))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_takes_kernels_unless_references_are_forced(monkeypatch):
    monkeypatch.delenv("ENGRAM_KERNELS", raising=False)
    assert use_triton(torch.ones(1, device="cuda"))
    assert not use_triton(torch.ones(1, device="cuda", dtype=torch.float64))
    monkeypatch.setenv("ENGRAM_KERNELS", "torch")
    assert not use_triton(torch.ones(1, device="cuda"))


def test_an_unknown_value_is_refused(monkeypatch):
    monkeypatch.setenv("ENGRAM_KERNELS", "cuda")
    with pytest.raises(ValueError, match="ENGRAM_KERNELS='cuda' is unknown; use auto, triton or torch"):
        use_triton(torch.ones(1))


def test_forced_kernels_say_why_they_cannot_run(monkeypatch):
    monkeypatch.setenv("ENGRAM_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match=r"no kernel reads torch\.float64; use float32, bfloat16 or float16"):
        use_triton(torch.ones(1), torch.ones(1, dtype=torch.float64))
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="no kernel runs on cpu; move model and batch to CUDA, or set ENGRAM_KERNELS"):
        use_triton(torch.ones(1))


def test_nothing_imports_triton_before_a_kernel_is_chosen():
    code = (
        "import sys, pkgutil, importlib, kernels, torch\n"
        "modules = [m.name for m in pkgutil.iter_modules(kernels.__path__) if not m.ispkg]\n"
        "[importlib.import_module(f'kernels.{name}') for name in modules]\n"
        "from kernels.rms_norm import rms_norm; rms_norm(torch.ones(2, 3), torch.ones(3), 1e-6)\n"
        "print('triton' in sys.modules, 'kernels.gpu' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["False", "False"], done.stderr
