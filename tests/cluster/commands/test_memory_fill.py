"""Snapshots made by the real command, looked up like any other."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sympy import nextprime

from cluster.cli import main
from memory_service import LocalMemory, RowFormat, check_fingerprints
from memory_service.tables.random_tables import random_block
from reasoning.architectures.registry import read_model_config
from reasoning.engram.model_hasher import build_hasher, table_specs
from reasoning.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[3]


def specs_of(model, row_format=RowFormat.FP8_E4M3_UE8M0):
    hasher = build_hasher(read_model_config(model).engram, Tokenizer.from_file(model))
    return {spec.layer: spec for spec in hasher.table_specs(row_format)}


def table(rows, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 256, (rows, dim), dtype=torch.uint8, generator=generator)
    scales = torch.randint(0, 256, (rows, dim // 32), dtype=torch.uint8, generator=generator)
    return values, scales


@pytest.fixture
def checkpoint(tiny_model, tmp_path):
    """A sharded checkpoint of a small geometry, whose backbone is foreign; weights and scales lie apart."""
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    shutil.copy(tiny_model / "tokenizer.json", directory)
    config = json.loads((tiny_model / "config.json").read_text())
    config |= {"engram_head_dim": 64, "engram_vocab_size": 5000}
    (directory / "config.json").write_text(json.dumps(config))
    weight_map = {}
    for number, (layer, spec) in enumerate(specs_of(directory).items()):
        values, scales = table(spec.rows, spec.dim, seed=layer)
        for kind, tensor in (
            ("weight", values.view(torch.float8_e4m3fn)),
            ("scale", scales.view(torch.float8_e8m0fnu)),
        ):
            name, file = f"layers.{layer}.engram.embed.{kind}", f"model-{number}-{kind}.safetensors"
            save_file({name: tensor, f"other.{name}": torch.ones(2)}, directory / file)
            weight_map[name] = file
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    del config["engram_head_dim"]  # the released config.json has none
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "deepseek_v41", "hc_mult": 4}))
    return directory


def test_an_imported_checkpoint_is_looked_up_row_by_row(checkpoint, tmp_path):
    output = tmp_path / "memory"
    argv = ["memory", "import", "--checkpoint", str(checkpoint), "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", *argv], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stderr) == (0, "")
    memory = LocalMemory.load(output)
    size = sum(spec.rows for spec in memory.specs.values())
    report = rf"{output}: 2 tables, {size:,} rows, {66 * size:,} bytes in \d+\.\d s \(\d+\.\d\d GB/s\)\n"
    assert re.fullmatch(report, done.stdout)
    for layer in (0, 2):
        spec = memory.specs[f"engram.{layer}"]
        rows = np.random.default_rng(layer).integers(0, spec.rows, (50, 4))
        found = memory.lookup(spec.name, rows).result()
        stored = torch.cat(table(spec.rows, 64, seed=layer), dim=1).numpy()
        assert np.array_equal(found.unique[found.inverse], stored[rows])


def test_another_geometry_is_refused_before_anything_is_written(checkpoint, tmp_path, capsys):
    stored = load_file(checkpoint / "model-0-weight.safetensors")["layers.0.engram.embed.weight"].shape[0]
    config = json.loads((checkpoint / "config.json").read_text()) | {"engram_vocab_size": 6000}
    (checkpoint / "config.json").write_text(json.dumps(config))
    wanted = sum(nextprime(6000, nth) for nth in range(1, 5))
    output = tmp_path / "memory"
    assert main(["memory", "import", "--checkpoint", str(checkpoint), "--output", str(output)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"tensor layers.0.engram.embed.weight: holds {stored} rows" in message
    assert f"has {wanted} rows" in message
    assert not output.exists()


def test_a_preset_takes_the_place_of_config_json(checkpoint, tmp_path, capsys):
    (checkpoint / "config.json").unlink()
    argv = ["memory", "import", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "memory")]
    assert main(argv) == 2
    assert "name a preset" in capsys.readouterr().err
    assert main([*argv, "--preset", "engram-demo"]) == 2
    assert "no tensor layers.1.engram.embed.weight, only tables of the layers [0, 2]" in capsys.readouterr().err


def test_a_model_binds_to_a_random_memory(tiny_model, tmp_path, capsys):
    output = tmp_path / "memory"
    assert main(["memory", "random", "--model", str(tiny_model), "--output", str(output), "--seed", "5"]) == 0
    assert "2 tables" in capsys.readouterr().out
    memory = LocalMemory.load(output)
    engram = read_model_config(tiny_model).engram
    specs = table_specs(engram, build_hasher(engram, Tokenizer.from_file(tiny_model)))
    check_fingerprints(memory, specs)
    for spec in specs:
        last = spec.blocks - 1
        rows = np.arange(last * spec.block_rows, spec.rows)
        found = memory.lookup(spec.name, rows).result()
        assert np.array_equal(found.unique[found.inverse], random_block(spec, last, seed=5))


def test_a_random_memory_in_another_row_format(checkpoint, tmp_path):
    argv = ["memory", "random", "--model", str(checkpoint), "--output", str(tmp_path / "memory")]
    assert main([*argv, "--row-format", "fp32"]) == 0
    assert {spec.row_format for spec in LocalMemory.load(tmp_path / "memory").specs.values()} == {RowFormat.FP32}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--preset", "engram-demo"], "--tokenizer: required"),
        (["--preset", "engram-27b", "--tokenizer", "{model}"], "or bf16"),
        (["--model", "{model}", "--seed", "-1"], "seed=-1"),
    ],
)
def test_what_cannot_be_random_is_refused(tiny_model, tmp_path, capsys, argv, words):
    argv = [part.format(model=tiny_model) for part in argv]
    assert main(["memory", "random", *argv, "--output", str(tmp_path / "memory")]) == 2
    assert words in capsys.readouterr().err
