"""No kernel fails to build for the GPUs that it is written for, although no test machine has one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_kernel_compiles_for_hopper(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("compile_ahead.py")
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    counts = dict(line.split()[1:] for line in done.stdout.splitlines())
    assert "rms_norm.forward_kernel" in counts
    assert [name for name, count in counts.items() if count == "0"] == [], "no case of the benchmark launches these"
