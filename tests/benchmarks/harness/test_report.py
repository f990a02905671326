from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import hashing
from benchmarks.harness.report import Report, format_table, installed_versions, parse_arguments
from benchmarks.harness.rounds import Spread


def test_every_benchmark_takes_quick_and_a_file_for_json(tmp_path: Path) -> None:
    options = parse_arguments("what it does", ["--quick", "--json", str(tmp_path / "out.json")])
    assert (options.quick, options.json) == (True, tmp_path / "out.json")
    plain = parse_arguments("what it does", [])
    assert (plain.quick, plain.json) == (False, None)


def test_first_column_is_aligned_left_and_others_right() -> None:
    assert format_table(("name", "ms"), [("a", 1.5), ("longer", 10)]) == "name     ms\na       1.5\nlonger   10"


def test_versions_leave_out_what_is_not_installed() -> None:
    assert list(installed_versions(["numpy", "no-such-package-anywhere"])) == ["numpy"]


def test_report_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ratios = {"theirs / ours": Spread.of([2.5, 2.0, 1.25]), "always": Spread.of([1.5])}
    report = Report("lookup", quick=True, results={"rows": 5}, ratios=ratios)
    report.publish(tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert set(written) == {"benchmark", "quick", "machine", "versions", "results", "ratios"}
    assert (written["benchmark"], written["quick"], written["results"]) == ("lookup", True, {"rows": 5})
    assert set(written["machine"]) == {"cpu", "cores", "memory_gib", "python"}
    printed = capsys.readouterr().out
    assert "theirs / ours: 2.00x (1.25x to 2.50x)\n" in printed
    assert "always: 1.50x\n" in printed
    assert written["ratios"]["theirs / ours"] == {"median": 2.0, "least": 1.25, "most": 2.5, "rounds": 3}
    assert written["machine"]["cpu"] in printed
    assert f"numpy {written['versions']['numpy']}" in printed


def test_the_hashing_benchmark_writes_its_ratios_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["hashing", "--quick", "--json", str(tmp_path / "out.json")])
    hashing.main()
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["results"]["columns"] == 48
    assert list(written["ratios"]) == ["plain numpy / hash"]
    assert "plain numpy, whole text" in capsys.readouterr().out
