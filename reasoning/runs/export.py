"""Write a trained model as a directory that the engine loads."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from memory_service import write_snapshot
from memory_service.snapshots.snapshot import Snapshot
from memory_service.tables.spec import TableSpec
from reasoning.architectures.base import Backbone
from reasoning.checkpoint.save import save_model
from reasoning.engram.memory_config import MEMORY_DIR
from reasoning.text.tokenizer import TOKENIZER_FILE


def export(model: Backbone, tokenizer_file: Path, memory: Snapshot, tables: list[TableSpec], directory: Path) -> None:
    """Write backbone, tokenizer and tables, without the state of optimizers.

    An existing directory is replaced in a single step, so that readers never see half a model.

    Args:
        model: the backbone, with its configuration.
        tokenizer_file: the model's tokenizer.
        memory: snapshot of the tables.
        tables: the tables that the model reads.
        directory: the model directory to write.
    """
    fresh = directory.with_name(f".{directory.name}.unfinished")
    shutil.rmtree(fresh, ignore_errors=True)
    save_model(model, fresh)
    shutil.copyfile(tokenizer_file, fresh / TOKENIZER_FILE)
    write_snapshot(fresh / MEMORY_DIR, {spec: _blocks(memory, spec) for spec in tables})
    shutil.rmtree(directory, ignore_errors=True)
    fresh.rename(directory)


def _blocks(memory: Snapshot, spec: TableSpec) -> Iterator[np.ndarray]:
    for block in range(spec.blocks):
        for _, rows in memory.read_blocks(spec.name, [block]):
            yield rows
