from __future__ import annotations

import functools
import gc
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import hashing
from benchmarks.report import Report, Timing, format_table, installed_versions, parse_arguments, time_interleaved


def test_arguments(tmp_path: Path) -> None:
    options = parse_arguments("what it does", ["--quick", "--json", str(tmp_path / "out.json")])
    assert (options.quick, options.json) == (True, tmp_path / "out.json")
    plain = parse_arguments("what it does", [])
    assert (plain.quick, plain.json) == (False, None)


def test_candidates_take_turns_and_each_leads_once() -> None:
    calls: list[str] = []
    timings = time_interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert {name: timing.runs for name, timing in timings.items()} == {"a": 3, "b": 3}


def test_collector_is_switched_back_on_after_a_failure() -> None:
    def fail() -> None:
        if not gc.isenabled():
            raise RuntimeError("while timed")

    with pytest.raises(RuntimeError, match="while timed"):
        time_interleaved({"a": fail}, rounds=1)
    assert gc.isenabled()


def test_percentiles() -> None:
    timing = Timing.of([float(i) for i in range(101)], cpu=202.0)
    assert timing.as_dict() == {"p50_s": 50.0, "p99_s": 99.0, "cpu_s": 2.0, "runs": 101}


def test_processor_time_counts_this_process_and_the_servers_of_a_candidate() -> None:
    """A server that has never stopped working, a candidate that works, and one that only sleeps."""
    busy = "print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            server.stdout.readline()
            sleep = functools.partial(time.sleep, 0.05)
            candidates = {"served": sleep, "works": lambda: sum(range(1_000_000)), "sleeps": sleep}
            timings = time_interleaved(candidates, rounds=3, servers={"served": [server.pid]})
        finally:
            server.kill()
    assert timings["served"].cpu > timings["sleeps"].cpu
    assert timings["works"].cpu > timings["sleeps"].cpu


def test_table_is_aligned() -> None:
    assert format_table(("name", "ms"), [("a", 1.5), ("longer", 10)]) == "name     ms\na       1.5\nlonger   10"


def test_versions_leave_out_what_is_not_installed() -> None:
    assert list(installed_versions(["numpy", "no-such-package-anywhere"])) == ["numpy"]


def test_report_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("lookup", quick=True, results={"rows": 5}, ratios={"theirs / ours": 2.0})
    report.publish(tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert set(written) == {"benchmark", "quick", "machine", "versions", "results", "ratios"}
    assert (written["benchmark"], written["quick"], written["results"]) == ("lookup", True, {"rows": 5})
    assert set(written["machine"]) == {"cpu", "cores", "memory_gib", "python"}
    printed = capsys.readouterr().out
    assert "theirs / ours: 2.00x" in printed
    assert written["machine"]["cpu"] in printed
    assert f"numpy {written['versions']['numpy']}" in printed


def test_hashing_benchmark_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["hashing", "--quick", "--json", str(tmp_path / "out.json")])
    hashing.main()
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["results"]["columns"] == 48
    assert list(written["ratios"]) == ["plain numpy / hash"]
    assert "plain numpy, whole text" in capsys.readouterr().out
