"""All rows of the kernel benchmark, one module a kernel."""

from __future__ import annotations

from benchmarks.kernels import rms_norm, rope, row_unpack
from benchmarks.kernels.case import Case

CASES: tuple[Case, ...] = (*rms_norm.CASES, *rope.CASES, *row_unpack.CASES)
