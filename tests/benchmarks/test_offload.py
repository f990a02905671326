"""Wherever tables lie, a lookup finds the same rows and a model the same tokens."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import pytest
import torch

from benchmarks.harness.report import Report
from benchmarks.memories.resident_memory import ResidentMemory, device_table, locked_table
from benchmarks.offload import QUICK, Bench, print_runs, run_places
from memory_service import RowFormat, TableSpec
from memory_service.tables.random_tables import random_blocks

CPU = torch.device("cpu")


@pytest.fixture
def spec():
    return TableSpec(
        name="engram.1",
        layer=1,
        column_rows=(9001,),
        max_ngram=2,
        heads=1,
        multipliers=(3, 5),
        pad_id=0,
        token_map_sha256="0" * 64,
        dim=256,
        row_format=RowFormat.FP8_E4M3_UE8M0,
    )


@pytest.mark.parametrize("gathered", ["by torch", "by kernel"])
def test_a_resident_table_holds_the_rows_that_belong_there(spec, gathered, monkeypatch):
    if gathered == "by kernel":
        pytest.importorskip("triton")
        if os.environ.get("TRITON_INTERPRET") != "1":
            pytest.skip("a kernel reads CPU tensors in the interpreter only")
        monkeypatch.setenv("ENGRAM_KERNELS", "triton")
    packed = np.concatenate(list(random_blocks(spec)))
    ids = np.array([[0, 9000], [4095, 4096], [17, 17], [1, 2], [8999, 3]])
    with locked_table(spec, CPU) as locked:
        for table in (locked, device_table(spec, CPU)):
            with contextlib.closing(ResidentMemory({spec: table}, CPU)) as memory:
                rows = memory.lookup(spec.name, ids).result(10)
                assert (rows.unique[rows.inverse].numpy() == packed[ids]).all()


@pytest.mark.slow
def test_every_place_gives_the_same_tokens(tmp_path, capsys):
    runs = run_places(Bench(QUICK, CPU, tmp_path), ["shards", "device", "pinned"])
    assert [run.place for run in runs] == ["none", "device", "pinned", "shards"]
    assert len({run.sha256 for run in runs[1:]}) == 1
    assert runs[0].sha256 != runs[1].sha256
    report = Report("offload", quick=True)
    print_runs(runs, report)
    assert "against device" in capsys.readouterr().out
    assert {"shards / device, tokens a second", "pinned / none, tokens a second"} <= report.ratios.keys()
