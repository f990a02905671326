"""Snapshots written, checked and tidied by the real commands."""

from __future__ import annotations

import os

import numpy as np
import pytest

from cluster.cli import main
from memory_service import RowFormat, Snapshot, TableSpec, extend_snapshot
from memory_service.server.process import ServeConfig, start
from memory_service.tables.random_tables import random_block

SPEC = TableSpec("engram.1", 1, (500, 501), 2, 2, (7, 11), 2, "ab" * 32, 32, RowFormat.BF16, 64)


@pytest.fixture
def series(tmp_path):
    for changed in range(3):
        blocks = [random_block(SPEC, block, seed=changed if block == 5 else 0) for block in range(SPEC.blocks)]
        extend_snapshot(tmp_path / "memory", {SPEC: blocks}, version=changed)
    return tmp_path / "memory"


def test_verify_prints_a_line_for_every_generation(series, capsys):
    assert main(["memory", "verify", "--snapshot", str(series)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "generation 0: 16 blocks, 64,064 bytes, of which new 16 blocks, 64,064 bytes; whole"
    assert lines[2] == "generation 2: 16 blocks, 64,064 bytes, of which new 1 blocks, 4,096 bytes; whole"


def test_verify_names_damage_and_exits_with_one(series, capsys):
    [file] = (series / "engram.1").glob("000001-*")
    file.unlink()
    os.truncate(series / "manifest-000002.json", 50)
    assert main(["memory", "verify", "--snapshot", str(series)]) == 1
    out = capsys.readouterr().out
    assert out.count("DAMAGED") == 2
    assert f"file engram.1/{file.name} of table 'engram.1' is missing" in out
    assert "manifest-000002.json is damaged" in out


def test_prune_prints_the_files_that_it_deleted(series, capsys):
    assert main(["memory", "prune", "--snapshot", str(series), "--keep", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["manifest.json", f"{series}: 1 files deleted"]
    assert Snapshot.last_good(series).generation == 2
    assert main(["memory", "prune", "--snapshot", str(series), "--keep", "0"]) == 2


def test_a_running_memory_is_added_to_its_snapshot(series, capsys):
    with start(ServeConfig(series)) as server:
        table = server.shard.tables["engram.1"]
        rows = table.copy_block(3) ^ 255
        table.drop(np.array([3]))
        table.add([(3, rows)])
        table.version += 1
        assert main(["memory", "snapshot", server.address, "--snapshot", str(series)]) == 0
        assert capsys.readouterr().out.startswith("generation 3: 16 blocks, 64,064 bytes, of which new 1 blocks")
        assert main(["memory", "snapshot", server.address, "--snapshot", str(series), "--full"]) == 0
        assert capsys.readouterr().out.startswith("generation 4: 16 blocks, 64,064 bytes, of which new 16 blocks")
    assert main(["memory", "verify", "--snapshot", str(series)]) == 0


def test_verify_of_an_empty_directory_exits_with_two(tmp_path, capsys):
    assert main(["memory", "verify", "--snapshot", str(tmp_path)]) == 2
    assert "no snapshot at" in capsys.readouterr().err
