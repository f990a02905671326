"""Every kernel compiles for the GPUs that it is written for, although no test machine has one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kernels.cases import CASES

ROOT = Path(__file__).parents[2]
PROCESSES = min(4, os.cpu_count() or 1)


@pytest.fixture
def compiled(request, tmp_path):
    """Directory of Triton's compiled kernels, kept with pytest's cache from one run to the next.

    Triton names them by a hash of source, arguments, configuration and its own version, so that a kernel is compiled
    again when any of these changes. `pytest --cache-clear` has all of them compiled.
    """
    cache = getattr(request.config, "cache", None)
    return cache.mkdir("triton") if cache else tmp_path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_kernel_compiles_for_hopper(compiled):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(compiled)}
    names = sorted({case.kernel for case in CASES})
    script = Path(__file__).with_name("compile_ahead.py")
    running = [
        subprocess.Popen(
            [sys.executable, script, *names[first::PROCESSES]],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for first in range(PROCESSES)
    ]
    counts: dict[str, int] = {}
    try:
        for process in running:
            out, err = process.communicate(timeout=580)
            assert process.returncode == 0, err
            for _, name, count in map(str.split, out.splitlines()):
                counts[name] = counts.get(name, 0) + int(count)
    finally:
        for process in running:
            process.kill()
    assert "rms_norm.forward_kernel" in counts
    assert [name for name, count in counts.items() if not count] == [], "no case of the benchmark launches these"
