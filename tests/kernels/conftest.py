"""Every test of a kernel runs on its reference too; both compare with a formula in float64."""

from __future__ import annotations

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7 if INTERPRETED else 2**-8, torch.float16: 2**-11}
"""Of one rounding to the type, where the interpreter cuts bf16 off; relative, and absolute for values around one."""


@pytest.fixture
def device():
    """Where kernels run: a GPU if there is one, else the CPU in Triton's interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(params=["torch", "triton"])
def implementation(request, monkeypatch):
    """Reference and kernel, forced in turn."""
    monkeypatch.setenv("ENGRAM_KERNELS", request.param)
    return request.param


@pytest.fixture
def few_strips(monkeypatch):
    """Programs that work on strips of rows take several turns each, though tests have few rows."""
    pytest.importorskip("triton")
    for module in ("rms_norm", "engram_fuse", "engram_conv"):
        monkeypatch.setattr(f"kernels.gpu.{module}.STRIPS", 4)


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """Memory that nobody wrote holds NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def randn(device):
    """Function that draws seeded normal values: randn(5, 17, dtype=torch.bfloat16)."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape, dtype=torch.float32):
        return torch.randn(shape, generator=generator).to(device, dtype)

    return draw


@pytest.fixture
def assert_near():
    """Function that compares results with a formula in float64, as near as the results' own type allows."""

    def compare(got, formula, scale=1.0):
        assert not got.isnan().any()
        tolerance = TOLERANCE[got.dtype]
        torch.testing.assert_close(got.double(), formula.double(), rtol=tolerance, atol=tolerance * scale)

    return compare


@pytest.fixture
def gradients():
    """Function that differentiates a weighted sum of a function's results; the weights suit every precision."""

    def differentiate(function, *tensors):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
        results = function(*leaves)
        results = results if isinstance(results, tuple) else (results,)
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(result.shape, generator=generator).bfloat16().to(result) for result in results]
        return torch.autograd.grad(results, leaves, weights)

    return differentiate
