"""Checkpoints of a run: backbone, optimizer, position in the data and tables of one step, committed as one.

    checkpoints/memory/            a snapshot of tables and optimizer state; each checkpoint names a generation of it
    checkpoints/step-00000100/     training.safetensors, and checkpoint.json, which names step, generation and checksums

A checkpoint is written beside its place and renamed into it as a whole, once its generation is sealed. One that is
unfinished or damaged is passed over for the one before.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from memory_service import MemoryServiceError
from memory_service.snapshots.snapshot import Snapshot, generations
from memory_service.snapshots.store import open_store
from memory_service.snapshots.upkeep import prune
from reasoning.corpora.manifest import file_digest

FOLDER = "checkpoints"
MEMORY = "memory"
_STATE, _MANIFEST = "training.safetensors", "checkpoint.json"

_log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read; names the file and a remedy."""


@dataclass(frozen=True)
class Position:
    """How far a run is."""

    step: int = 0
    """Steps taken. The next step takes the sequences after `step` batches."""
    seconds: float = 0.0
    """Seconds of training, over all attempts."""
    batch: int = 0
    """Sequences of a batch: the position in the data is `step * batch`; 0 before the first step."""
    corpus: str = ""
    """Fingerprint of the corpus; empty before the first step."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole."""

    path: Path
    """Its folder."""
    position: Position
    """How far the run was."""
    memory_uri: str
    """The generation of the snapshot with its tables; empty where tables were frozen."""

    def read(self) -> dict[str, Tensor]:
        """Return the state of the trainer.

        Raises:
            CheckpointError: the file is damaged.
        """
        try:
            return load_file(self.path / _STATE)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"checkpoint: {self.path / _STATE} cannot be read ({error}); delete it") from error


class Checkpoints:
    """The checkpoints of one run's folder. For one writer."""

    def __init__(self, run: Path, keep: int = 2) -> None:
        """Open the folder of a run.

        Args:
            run: folder of the run; its checkpoints are in a folder of it.
            keep: number of checkpoints that are kept.
        """
        self.folder = run / FOLDER
        self.memory_uri = self.folder / MEMORY
        """Directory of the snapshot whose generations hold the tables."""
        self._keep = keep

    def save(self, state: Mapping[str, Tensor], position: Position, memory: Snapshot | None) -> Checkpoint:
        """Write a checkpoint, whose tables are sealed already, and delete those that are not kept.

        Raises:
            CheckpointError: it cannot be written, for example because the disk is full. Earlier ones are as before.
        """
        path = self._path(position.step)
        unfinished = path.with_name(f".{path.name}.unfinished")
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            save_file(dict(state), unfinished / _STATE)
            digest = file_digest(unfinished / _STATE)
            generation = None if memory is None else memory.generation
            _write(unfinished / _MANIFEST, {**asdict(position), "generation": generation, "digest": digest})
            _sync(unfinished / _STATE)
            shutil.rmtree(path, ignore_errors=True)  # of an attempt that was undone
            unfinished.rename(path)
            _sync(path.parent)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise CheckpointError(
                f"checkpoint: step {position.step} cannot be written to {path} ({error}); free some space, or name "
                "another output. Earlier checkpoints are as before"
            ) from error
        self._prune(path)
        return Checkpoint(path, position, "" if memory is None else memory.uri)

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, or None; damaged ones are passed over with a warning."""
        for path in reversed(self._paths()):
            try:
                return self._open(path)
            except (CheckpointError, MemoryServiceError) as error:
                _log.warning("%s is passed over: %s", path, error)
        return None

    def _open(self, path: Path) -> Checkpoint:
        values = _read(path / _MANIFEST)
        if missing := {*(field.name for field in fields(Position)), "digest", "generation"} - set(values):
            raise CheckpointError(f"checkpoint: {path / _MANIFEST} is of another release: it lacks {min(missing)}")
        if not (path / _STATE).is_file() or file_digest(path / _STATE) != values["digest"]:
            raise CheckpointError(f"checkpoint: {path / _STATE} is missing or damaged")
        position = Position(**{field.name: values[field.name] for field in fields(Position)})
        if values["generation"] is None:
            return Checkpoint(path, position, "")
        snapshot = Snapshot.open(f"{self.memory_uri}?generation={values['generation']}")
        return Checkpoint(path, position, snapshot.uri)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []

    def _prune(self, newest: Path) -> None:
        """Delete old checkpoints, and later ones, which were passed over; then generations that none names."""
        kept = [path for path in self._paths() if path <= newest][-self._keep :]
        for path in set(self._paths()) - set(kept):
            shutil.rmtree(path, ignore_errors=True)
        try:
            named = [_read(path / _MANIFEST).get("generation") for path in self._paths()]
            oldest = min((number for number in named if number is not None), default=None)
            if oldest is not None:
                newer = [number for number in generations(open_store(self.memory_uri)) if number >= oldest]
                prune(self.memory_uri, keep=len(newer))
        except (CheckpointError, MemoryServiceError, OSError) as error:
            _log.warning("old checkpoints are kept: %s", error)


def _write(path: Path, values: Mapping[str, object]) -> None:
    body = json.dumps(values, sort_keys=True)
    path.write_text(json.dumps({"body": values, "checksum": xxhash.xxh3_128_hexdigest(body.encode())}) + "\n")
    _sync(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        body = dict(content["body"])
        if xxhash.xxh3_128_hexdigest(json.dumps(body, sort_keys=True).encode()) == content["checksum"]:
            return body
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint: {path} cannot be read ({error})") from error
    raise CheckpointError(f"checkpoint: {path} is damaged: its checksum does not match")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
