"""The script for GPU machines: its short forms run on a CPU, and what fails is said at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"


def gpu(results, *arguments):
    environment = {**os.environ, "PYTHON": sys.executable, "RESULTS": str(results), "OMP_NUM_THREADS": "1"}
    return subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_parity_is_checked_and_written_down(tmp_path):
    done = gpu(tmp_path, "--quick", "parity")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "parity.json").read_text())["results"]
    assert all(result["passed"] for result in results.values())
    assert "shipped model, greedy tokens as on the CPU" in (tmp_path / "parity.txt").read_text()


def test_a_part_that_fails_is_named_and_the_next_goes_on(tmp_path):
    done = gpu(tmp_path, "--quick", "nonsense", "more")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "failed: nonsense more"
    assert "use tests, kernels, parity, throughput or offload" in done.stdout
