"""Compile every kernel for sm_90 as the benchmark's cases launch it, in every committed configuration, without a GPU.

Run as a script, in a process of its own: Triton must not be in interpreting mode, and its launches are replaced here.
Arguments name the kernels of the cases (all if none are named). Prints `compiled NAME N` for every kernel that the
project has, N specialisations of those cases.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
from collections import Counter

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction, KernelInterface

import kernels.gpu
from benchmarks.kernels.case import forced
from benchmarks.kernels.cases import CASES
from kernels import dispatch

TOKENS = 2048
MOST_SHARED = 227 << 10  # bytes that a program may take of a Hopper multiprocessor's memory


class AbsentDevice:
    """What Triton asks of a driver before it compiles."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


def launched_kernels():
    """Every kernel that a host function launches, by module and name: those whose name ends in `_kernel`."""
    found = {}
    for module in pkgutil.iter_modules(kernels.gpu.__path__):
        for name, value in vars(importlib.import_module(f"kernels.gpu.{module.name}")).items():
            if isinstance(value, KernelInterface) and name.endswith("_kernel"):
                while isinstance(value, Autotuner):
                    value = value.fn
                found[value] = f"{module.name}.{name}"
    return found


def main(names):
    compiled = Counter()
    triton.runtime.driver.set_active(AbsentDevice())
    dispatch._runs_on = lambda device: True
    original = JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        before = len(self.device_caches[0][0])
        kernel = original(self, *args, grid=grid, warmup=True, **options)
        assert kernel.asm["cubin"]
        assert kernel.metadata.shared <= MOST_SHARED, (self.__name__, kernel.metadata)
        compiled[self] += len(self.device_caches[0][0]) - before

    JITFunction.run = compile_only
    KernelInterface.__getitem__ = lambda self, grid: functools.partial(self.warmup, grid=grid)
    with forced("triton"):
        for case in CASES:
            if not names or case.kernel in names:
                case.ready(torch.device("meta"), TOKENS).run()
    for kernel, name in launched_kernels().items():
        print(f"compiled {name} {compiled[kernel]}")


main(sys.argv[1:])
