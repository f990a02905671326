"""Checkpoints are committed as one, found again, passed over when they are not whole, and pruned."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import xxhash

from memory_service.learning.optimizers import OptimizerConfig
from memory_service.snapshots.snapshot import generations
from memory_service.snapshots.store import open_store
from memory_service.training.local import LocalLearningMemory
from reasoning.runs import checkpoints as module
from reasoning.runs.checkpoints import CheckpointError, Checkpoints, Position
from tests.reasoning.training.small import specs, write_tables

STATE = {"model.weight": torch.arange(6.0).view(2, 3), "optimizer.0.0.step": torch.tensor(4.0)}


def position(step):
    return Position(step=step, seconds=1.5 * step, batch=4, corpus="abc")


class Tables:
    """Tables of a run that take a step before each checkpoint."""

    def __init__(self, checkpoints):
        optimizer = OptimizerConfig("sgd")
        self.uri, self.steps = checkpoints.memory_uri, 0
        self.memory = LocalLearningMemory(write_tables(self.uri, optimizer).uri, optimizer)

    def snapshot(self):
        self.steps += 1
        for spec in specs():
            rows = np.arange(self.steps, 2 * self.steps)
            self.memory.push(self.steps, spec.name, rows, np.ones((len(rows), spec.dim), np.float32), 0.1).result()
        self.memory.commit(self.steps, 1.0).result()
        return self.memory.snapshot(self.uri)


@pytest.fixture
def three(tmp_path):
    """Checkpoints of steps 2, 4 and 6."""
    checkpoints = Checkpoints(tmp_path, keep=3)
    tables = Tables(checkpoints)
    for step in (2, 4, 6):
        checkpoints.save({**STATE, "model.weight": STATE["model.weight"] + step}, position(step), tables.snapshot())
    return checkpoints


def folders(checkpoints):
    return [path.name for path in sorted(checkpoints.folder.iterdir()) if path.name != "memory"]


def rewrite(path, change):
    """Change the body of a checkpoint.json, with the checksum that it then has."""
    body = json.loads(path.read_text())["body"]
    change(body)
    checksum = xxhash.xxh3_128_hexdigest(json.dumps(body, sort_keys=True).encode())
    path.write_text(json.dumps({"body": body, "checksum": checksum}))


def test_a_folder_without_checkpoints_has_none(tmp_path):
    assert Checkpoints(tmp_path).newest() is None
    assert Checkpoints(tmp_path / "nowhere").newest() is None


def test_the_newest_is_found_with_its_state_and_its_tables(three):
    found = Checkpoints(three.folder.parent).newest()
    assert (found.path.name, found.position) == ("step-00000006", position(6))
    assert found.memory_uri.endswith("generation=3")
    state = found.read()
    assert torch.equal(state["model.weight"], STATE["model.weight"] + 6)
    assert state["optimizer.0.0.step"] == 4


def test_a_checkpoint_of_frozen_tables_names_no_generation(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    saved = checkpoints.save(STATE, position(3), None)
    assert saved.memory_uri == ""
    assert checkpoints.newest() == saved


def damage_of(name):
    def cut(path, by):
        path.write_bytes(path.read_bytes()[:-by])

    def flip(path):
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        path.write_bytes(bytes(content))

    return {
        "no state": lambda c: (c / "training.safetensors").unlink(),
        "state cut off": lambda c: cut(c / "training.safetensors", 5),
        "state flipped": lambda c: flip(c / "training.safetensors"),
        "no manifest": lambda c: (c / "checkpoint.json").unlink(),
        "manifest cut off": lambda c: cut(c / "checkpoint.json", 20),
        "manifest empty": lambda c: (c / "checkpoint.json").write_bytes(b""),
        "manifest no text": lambda c: (c / "checkpoint.json").write_bytes(b"\xff\xfe\x00"),
        "manifest a list": lambda c: (c / "checkpoint.json").write_text("[1]"),
        "manifest changed": lambda c: (c / "checkpoint.json").write_text(
            (c / "checkpoint.json").read_text().replace('"step": 6', '"step": 7')
        ),
        "other release": lambda c: rewrite(c / "checkpoint.json", lambda body: body.pop("digest")),
        "other fields": lambda c: rewrite(c / "checkpoint.json", lambda body: body.pop("corpus")),
        "no generation": lambda c: (c.parent / "memory" / "manifest-000003.json").unlink(),
        "no rows": lambda c: next((c.parent / "memory" / "engram.0").glob("000003-*")).unlink(),
    }[name]


@pytest.mark.parametrize(
    "name",
    ["no state", "state cut off", "state flipped", "no manifest", "manifest cut off", "manifest empty",
     "manifest no text", "manifest a list", "manifest changed", "other release", "other fields", "no generation",
     "no rows"],
)  # fmt: skip
def test_what_is_not_whole_is_passed_over_with_a_warning(three, name, caplog):
    damage_of(name)(three.folder / "step-00000006")
    with caplog.at_level(logging.WARNING):
        found = three.newest()
    assert found.position == position(4)
    assert "step-00000006 is passed over: " in caplog.text


def test_all_damaged_means_none(three, caplog):
    for path in three.folder.glob("step-*"):
        (path / "checkpoint.json").write_text("{}")
    assert three.newest() is None
    assert caplog.text.count("is passed over") == 3


def test_a_state_that_is_damaged_after_it_was_found_is_refused(three):
    found = three.newest()
    (found.path / "training.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"checkpoint: \S+/training.safetensors cannot be read .* delete it"):
        found.read()


@pytest.mark.parametrize("keep", [1, 2])
def test_old_checkpoints_and_generations_are_pruned(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path, keep)
    tables = Tables(checkpoints)
    for step in range(1, 6):
        checkpoints.save(STATE, position(step), tables.snapshot())
        assert folders(checkpoints) == [f"step-{n:08d}" for n in range(max(1, step - keep + 1), step + 1)]
    left = generations(open_store(checkpoints.memory_uri))
    assert left == list(range(6 - keep, 6))
    assert checkpoints.newest().position.step == 5


def test_generations_without_a_checkpoint_do_not_push_out_those_that_have_one(tmp_path):
    """A checkpoint may fail after its tables are sealed, again and again."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    tables = Tables(checkpoints)
    checkpoints.save(STATE, position(1), tables.snapshot())
    for _ in range(3):
        tables.snapshot()
    checkpoints.save(STATE, position(2), tables.snapshot())
    (checkpoints.folder / "step-00000002" / "checkpoint.json").unlink()
    assert checkpoints.newest().position.step == 1


def test_a_later_checkpoint_that_is_damaged_does_not_push_out_the_one_just_written(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(STATE, position(6), None)
    (checkpoints.folder / "step-00000006" / "checkpoint.json").write_text("{}")
    checkpoints.save(STATE, position(5), None)
    assert checkpoints.newest().position.step == 5
    assert folders(checkpoints) == ["step-00000005"]


def test_a_checkpoint_of_the_same_step_is_replaced(three):
    three.save(STATE, position(6), None)
    assert torch.equal(three.newest().read()["model.weight"], STATE["model.weight"])
    assert folders(three) == ["step-00000002", "step-00000004", "step-00000006"]


def test_a_checkpoint_that_was_left_unfinished_is_no_checkpoint(three):
    unfinished = three.folder / ".step-00000008.unfinished"
    unfinished.mkdir()
    (unfinished / "training.safetensors").write_bytes(b"half")
    assert three.newest().position.step == 6
    three.save(STATE, position(8), None)
    assert not unfinished.exists()


def test_a_write_that_fails_leaves_earlier_checkpoints_as_they_were(three, monkeypatch):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    before = {path: path.read_bytes() for path in three.folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(CheckpointError, match=r"checkpoint: step 8 cannot be written to .*No space left.*free some"):
        three.save(STATE, position(8), None)
    assert {path: path.read_bytes() for path in three.folder.rglob("*") if path.is_file()} == before
    assert three.newest().position.step == 6


@contextmanager
def small_disk(folder, size):
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_a_disk_that_is_full_is_said_and_leaves_earlier_checkpoints_as_they_were(tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        checkpoints = Checkpoints(disk)
        checkpoints.save(STATE, position(1), None)
        large = {"model.weight": torch.zeros(1 << 19)}
        with pytest.raises(CheckpointError, match="checkpoint: step 2 cannot be written"):
            checkpoints.save(large, position(2), None)
        assert folders(checkpoints) == ["step-00000001"]
        checkpoints.save(STATE, position(3), None)
        assert checkpoints.newest().position.step == 3
