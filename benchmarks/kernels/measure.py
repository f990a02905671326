"""Times on a GPU: a kernel, torch eager and torch.compile by turns, beside what the device reaches at best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import triton.testing

from benchmarks.harness.rounds import Spread, take_turns
from benchmarks.kernels.case import Case, forced, largest_difference

ROUNDS = 5
_WARMUP_MS, _MEASURED_MS = 10, 30  # of each candidate in each round


@dataclass(frozen=True)
class Ceilings:
    """What the device reached in this run."""

    copy: float
    """Bytes a second that a copy of 1 GiB reads and writes."""
    product: float
    """Floating point operations a second of cuBLAS on bf16 matrices of 8192 x 8192."""

    @classmethod
    def measure(cls) -> Ceilings:
        """Measure both on the current device."""
        source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        square = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
        copying, multiplying = seconds(lambda: target.copy_(source)), seconds(lambda: square @ square)
        return cls(copy=2 * source.numel() / copying, product=2 * 8192**3 / multiplying)


@dataclass(frozen=True)
class Row:
    """Figures of one case."""

    name: str
    """Kernel, shape and tokens."""
    seconds: Spread
    """Time of the kernel."""
    rate: float
    """Bytes or floating point operations a second, at the median time."""
    bound: str
    """"GB/s" or "TFLOP/s": what the rate counts."""
    ceiling: float
    """Rate as a share of what the device reached in this run."""
    eager: Spread
    """Time of torch eager over that of the kernel."""
    compiled: Spread
    """Time of torch.compile over that of the kernel."""


def measure(case: Case, ceilings: Ceilings) -> Row:
    """Compare a case with its reference and time it.

    Raises:
        ValueError: kernel and reference differ by more than the case allows.
    """
    device = torch.device("cuda")
    with forced("triton"):
        kernel = case.ready(device, case.tokens)
        results = kernel.run()
    with forced("torch"):
        eager = case.ready(device, case.tokens)
        _check(case, largest_difference(results, eager.run()))  # before either is run again: it may work in place
        compiled = case.ready(device, case.tokens, torch.compile)
    runs = {"kernel": ("triton", kernel.run), "eager": ("torch", eager.run), "compiled": ("torch", compiled.run)}
    times = take_turns({name: partial(_seconds_forced, *how) for name, how in runs.items()}, ROUNDS)
    taken = Spread.of(times["kernel"])
    work = case.flops(case.tokens) if case.flops else case.bytes_moved(kernel.arguments, results)
    best, bound = (ceilings.product, "TFLOP/s") if case.flops else (ceilings.copy, "GB/s")
    rate = work / taken.median
    eager_ratio, compiled_ratio = (Spread.of_ratios(times[name], times["kernel"]) for name in ("eager", "compiled"))
    return Row(f"{case}, {case.tokens} tokens", taken, rate, bound, rate / best, eager_ratio, compiled_ratio)


def seconds(run: Callable[[], object]) -> float:
    """Median time by CUDA events, with cold level-2 cache."""
    return triton.testing.do_bench(run, warmup=_WARMUP_MS, rep=_MEASURED_MS, quantiles=[0.5]) / 1e3


def _seconds_forced(mode: str, run: Callable[[], object]) -> float:
    with forced(mode):
        return seconds(run)


def _check(case: Case, difference: float) -> None:
    if not difference <= case.tolerance:
        raise ValueError(f"{case}: kernel and reference differ by {difference:.2g} of the largest value: not timed")
