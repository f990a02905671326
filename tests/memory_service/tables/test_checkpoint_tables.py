"""Tables of checkpoints that the safetensors library wrote: bit for bit, a block at a time, damage named."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from memory_service import LocalMemory, RowFormat, TableSpec, write_snapshot
from memory_service.tables.checkpoint_tables import INDEX, CheckpointTables

WEIGHT, SCALE = "layers.1.engram.embed.weight", "layers.1.engram.embed.scale"
ROWS, DIM = 1650, 64  # of the spec below
DTYPES = {RowFormat.BF16: torch.bfloat16, RowFormat.FP32: torch.float32}


@pytest.fixture
def spec(make_spec) -> TableSpec:
    return make_spec(row_format=RowFormat.FP8_E4M3_UE8M0)


@pytest.fixture
def refusal(spec):
    """Function that draws the table of a directory and returns the error."""

    def draw(directory: Path) -> str:
        with pytest.raises(ValueError, match=str(directory)) as caught:
            rows_of(directory, spec)
        return str(caught.value)

    return draw


def random_bytes(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(sum(shape)))


def fp8_table(rows: int = ROWS, dim: int = DIM) -> tuple[torch.Tensor, torch.Tensor]:
    return random_bytes(rows, dim).view(torch.float8_e4m3fn), random_bytes(rows, dim // 32).view(torch.float8_e8m0fnu)


def packed(weight: torch.Tensor, scale: torch.Tensor) -> np.ndarray:
    return torch.cat([weight.view(torch.uint8), scale.view(torch.uint8)], dim=1).numpy()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Weight and scale in different files, among other tensors, with an index."""
    weight, scale = fp8_table()
    save_file({"a": torch.ones(3), WEIGHT: weight, "head.weight": torch.ones(5, 2)}, tmp_path / "1.safetensors")
    save_file({"b": torch.ones(7, dtype=torch.int8), SCALE: scale}, tmp_path / "2.safetensors")
    save_file({"c": torch.ones(1)}, tmp_path / "3.safetensors")
    weight_map = {"a": "1.safetensors", WEIGHT: "1.safetensors", SCALE: "2.safetensors", "c": "3.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tmp_path


def rows_of(directory: Path, spec: TableSpec) -> np.ndarray:
    return np.concatenate(list(CheckpointTables.open(directory).table(spec.layer).blocks(spec)))


def test_fp8_rows_are_taken_over_bit_for_bit(checkpoint, spec):
    blocks = list(CheckpointTables.open(checkpoint).table(1).blocks(spec))
    assert [len(block) for block in blocks] == [spec.block_length(block) for block in range(spec.blocks)]
    assert len(blocks[-1]) < spec.block_rows, "the last block is short"
    assert np.array_equal(np.concatenate(blocks), packed(*fp8_table()))


def test_without_an_index_every_file_is_searched(checkpoint, spec):
    (checkpoint / INDEX).unlink()
    assert np.array_equal(rows_of(checkpoint, spec), packed(*fp8_table()))


def test_with_an_index_only_the_files_of_tables_are_opened(checkpoint, spec):
    (checkpoint / "3.safetensors").unlink()
    assert np.array_equal(rows_of(checkpoint, spec), packed(*fp8_table()))


def test_tensor_names_may_begin_with_model(tmp_path, spec):
    weight, scale = fp8_table()
    save_file({f"model.{WEIGHT}": weight, f"model.{SCALE}": scale}, tmp_path / "model.safetensors")
    assert np.array_equal(rows_of(tmp_path, spec), packed(weight, scale))


@pytest.mark.parametrize("row_format", DTYPES)
def test_unscaled_rows_are_taken_over_bit_for_bit(tmp_path, make_spec, row_format):
    spec = make_spec(row_format=row_format)
    weight = torch.randn(spec.rows, spec.dim).to(DTYPES[row_format])
    save_file({WEIGHT: weight}, tmp_path / "model.safetensors")
    assert CheckpointTables.open(tmp_path).table(1).row_format is row_format
    assert np.array_equal(rows_of(tmp_path, spec), weight.view(torch.uint8).numpy())


def test_no_more_than_a_few_blocks_are_in_memory(tmp_path, make_spec):
    spec = make_spec(row_format=RowFormat.FP8_E4M3_UE8M0, column_rows=(60_000,) * 4, dim=256, block_rows=4096)
    weight, scale = fp8_table(spec.rows, spec.dim)
    save_file({WEIGHT: weight, SCALE: scale}, tmp_path / "model.safetensors")
    table = CheckpointTables.open(tmp_path).table(1)
    block_bytes = spec.block_rows * spec.row_bytes
    assert spec.rows * spec.row_bytes > 58 * block_bytes
    tracemalloc.start()
    try:
        write_snapshot(tmp_path / "memory", {spec: table.blocks(spec)})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * block_bytes
    rows = np.random.default_rng(0).integers(0, spec.rows, 1000)
    found = LocalMemory.load(tmp_path / "memory").lookup(spec.name, rows).result()
    assert np.array_equal(found.unique[found.inverse], packed(weight, scale)[rows])


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (lambda w, s: {WEIGHT: w}, (WEIGHT, "F8_E4M3 needs", SCALE)),
        (lambda w, s: {SCALE: s}, ("no tensor layers.L.engram.embed.weight",)),
        (lambda w, s: {WEIGHT: w.to(torch.bfloat16), SCALE: s}, (WEIGHT, "BF16 has no use for", SCALE)),
        (lambda w, s: {WEIGHT: w, SCALE: s[:-1]}, (SCALE, "[1649, 2]", "[1650, 2]")),
        (lambda w, s: {WEIGHT: w, SCALE: s.to(torch.float32)}, (SCALE, "F32", "F8_E8M0")),
        (
            lambda w, s: {WEIGHT: w.view(torch.float8_e5m2), SCALE: s},
            (WEIGHT, "F8_E5M2", "F8_E4M3, F8_E8M0, BF16, F32"),
        ),
        (lambda w, s: {WEIGHT: s, SCALE: s.clone()}, (WEIGHT, "F8_E8M0", "F8_E4M3, BF16, F32")),
        (lambda w, s: {WEIGHT: w.reshape(-1)}, (WEIGHT, "[105600]", "[rows, width]")),
        (lambda w, s: {WEIGHT: w[:, :48].contiguous(), SCALE: s[:, :1].contiguous()}, (WEIGHT, "48 values", "32")),
        (lambda w, s: {WEIGHT: w[:-1], SCALE: s[:-1]}, (WEIGHT, "1649 rows", "1650 rows", "config.json")),
        (lambda w, s: {WEIGHT: w, SCALE: s, f"model.{SCALE}": s.clone()}, (SCALE, "is in", "keep one")),
        (lambda w, s: {WEIGHT.replace("1", "4"): w, SCALE.replace("1", "4"): s}, (WEIGHT, "layers [4]")),
    ],
)
def test_tensors_that_are_no_table_are_named(tmp_path, refusal, tensors, words):
    save_file(tensors(*fp8_table()), tmp_path / "model.safetensors")
    message = refusal(tmp_path)
    assert [word for word in (str(tmp_path), *words) if word not in message] == []


def test_a_truncated_safetensors_file_is_named_with_its_tensor(checkpoint, refusal):
    file = checkpoint / "1.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) - 100])
    message = refusal(checkpoint)
    assert str(file) in message
    assert WEIGHT in message
    assert f"truncated to {len(content) - 100} of {len(content)} bytes" in message


def test_a_file_that_shrinks_while_it_is_read_is_named(checkpoint, spec):
    blocks = CheckpointTables.open(checkpoint).table(1).blocks(spec)
    next(blocks)
    (checkpoint / "1.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1\.safetensors: tensor .*weight: the file ends inside rows 64 to 127"):
        next(blocks)


@pytest.mark.parametrize("keep", [0, 5, 8, 50])
def test_a_header_cut_short_is_named(checkpoint, refusal, keep):
    file = checkpoint / "2.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert f"{file}: the header is truncated" in refusal(checkpoint)


TWICE = b'{"a": {}, "a": {}}'


@pytest.mark.parametrize("header", [b"[]", b"{", b"\xff\xff", b"[" * 100_000, TWICE, b'{"a": NaN}'])
def test_what_is_no_safetensors_file_is_named(checkpoint, refusal, header):
    file = checkpoint / "2.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    assert f"{file}: the header is truncated, or this is no safetensors file" in refusal(checkpoint)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {"dtype": "F8_E8M0"},
        {"dtype": "F8_E8M0", "shape": [1650, 2], "data_offsets": [3300, 0]},
        {"dtype": "F8_E8M0", "shape": [1650, -2], "data_offsets": [0, 3300]},
        {"dtype": "F8_E8M0", "shape": [1650, 2], "data_offsets": [0, 3299]},
        {"dtype": 5, "shape": [1650, 2], "data_offsets": [0, 3300]},
        {"dtype": "F8_E8M0", "shape": ["1650", "2"], "data_offsets": [0, 3300]},
        {"dtype": "F8_E8M0", "shape": [1650, 2.0], "data_offsets": [0, 3300]},
        {"dtype": "F8_E8M0", "shape": [3300, True], "data_offsets": [0, 3300]},
        {"dtype": "F8_E8M0", "shape": "12", "data_offsets": [0, 3300]},
        {"dtype": "F8_E8M0", "shape": [1650, 2**70], "data_offsets": [0, 3300]},
        {"dtype": "F8_E8M0", "shape": [1650, 2], "data_offsets": [0, 1650, 3300]},
    ],
)
def test_a_damaged_header_entry_is_named(checkpoint, refusal, entry):
    header = json.dumps({SCALE: entry}).encode()
    file = checkpoint / "2.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(3300))
    assert f"{file}: tensor {SCALE}: " in (message := refusal(checkpoint))
    assert "copy the file again" in message


def test_a_file_that_the_index_names_must_exist(checkpoint, refusal):
    (checkpoint / "2.safetensors").unlink()
    assert f"{checkpoint / '2.safetensors'}: no such file" in refusal(checkpoint)


def test_a_tensor_must_be_where_the_index_says(checkpoint, refusal):
    (checkpoint / "2.safetensors").write_bytes((checkpoint / "3.safetensors").read_bytes())
    assert f"{checkpoint / '2.safetensors'}: tensor {SCALE}: not in the file" in refusal(checkpoint)


@pytest.mark.parametrize(
    "index",
    [
        *("", "[]", "{}", '{"weight_map": []}', '{"weight_map": null}', "[" * 200_000, " " * 100_000_001),
        '{"weight_map": {}, "weight_map": {}}',
        json.dumps({"weight_map": {WEIGHT: 3}}),
    ],
    ids=lambda index: index[:40],
)
def test_a_damaged_index_of_a_checkpoint_is_named(checkpoint, refusal, index):
    (checkpoint / INDEX).write_text(index)
    assert f"{checkpoint / INDEX}: no index" in refusal(checkpoint)


@pytest.mark.parametrize(
    "file",
    ["../1.safetensors", "/etc/passwd", "a/../../1.safetensors", "..", "a\\1.safetensors", "a\0.safetensors", ""],
)
def test_an_index_cannot_point_outside_its_directory(checkpoint, refusal, file):
    (checkpoint / INDEX).write_text(json.dumps({"weight_map": {WEIGHT: file}}))
    message = refusal(checkpoint)
    assert f"names {file!r} for tensor {WEIGHT}" in message
    assert "no *.safetensors file beside it" in message


def test_what_is_no_regular_file_is_not_opened(checkpoint, refusal):
    (checkpoint / "2.safetensors").unlink()
    os.mkfifo(checkpoint / "2.safetensors")
    assert f"{checkpoint / '2.safetensors'}: no such file" in refusal(checkpoint)


def test_a_directory_without_checkpoint_is_named(tmp_path, refusal):
    assert f"{tmp_path}: no *.safetensors" in refusal(tmp_path)
