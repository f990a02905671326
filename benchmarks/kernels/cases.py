"""All rows of the kernel benchmark, one module a kernel."""

from __future__ import annotations

from benchmarks.kernels import engram_conv, engram_fuse, experts, mla, rms_norm, rope, row_unpack
from benchmarks.kernels.case import Case

CASES: tuple[Case, ...] = (
    *engram_conv.CASES,
    *engram_fuse.CASES,
    *experts.CASES,
    *mla.CASES,
    *rms_norm.CASES,
    *rope.CASES,
    *row_unpack.CASES,
)
