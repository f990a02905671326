"""The client of docs/wire.md, exactly as it stands there, against a running memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from memory_service import write_snapshot
from tests.conformance.implementations import IMPLEMENTATIONS, choose
from tests.memory_service.conftest import Processes, packed_of, spec_of

ROOT = Path(__file__).parents[2]
[EXAMPLE] = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "wire.md").read_text(), re.M | re.S)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_example_prints_the_rows_asked_for(
    implementation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(implementation, monkeypatch)
    spec = spec_of()
    packed = packed_of(spec)
    write_snapshot(tmp_path / "memory", {spec: packed})
    (tmp_path / "lookup.py").write_text(EXAMPLE)
    ids = [*np.random.default_rng(0).integers(0, spec.rows, 50).tolist(), 0, 0, spec.rows - 1]

    def look_up(address: str, *rows: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(tmp_path / "lookup.py"), address, spec.name, *map(str, rows)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    with ExitStack() as stack:
        shards = Processes(tmp_path / "memory", stack)(2)
        done = look_up(shards.addresses[1], *ids)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [f"{row} {packed[row].tobytes().hex()}" for row in ids]
        refused = look_up(shards.addresses[0], spec.rows)  # in the last block, and beyond the table
        assert (refused.returncode, "STATUS_ROW_OUT_OF_RANGE: " in refused.stderr) == (1, True)


def test_the_example_is_short() -> None:
    assert len([line for line in EXAMPLE.splitlines() if line.strip()]) <= 35
