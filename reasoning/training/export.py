"""Write what a trainer holds as a model directory that the engine loads."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from tokenizers import Tokenizer as BpeTokenizer

from memory_service import write_snapshot
from reasoning.architectures.base import Backbone
from reasoning.checkpoint.save import save_model
from reasoning.engram.memory_config import MEMORY_DIR
from reasoning.engram.model_hasher import table_specs
from reasoning.text.tokenizer import TOKENIZER_FILE
from reasoning.training.loop import Trainer


def export(trainer: Trainer, bpe: BpeTokenizer, directory: Path) -> None:
    """Write backbone, tokenizer and tables, the rows packed as the model's configuration says.

    An existing directory is replaced in a single step, so that readers never see half a model.
    """
    fresh = directory.with_name(f".{directory.name}.unfinished")
    shutil.rmtree(fresh, ignore_errors=True)
    save_model(_with_map_size(trainer), fresh)
    bpe.save(str(fresh / TOKENIZER_FILE), pretty=False)
    specs = table_specs(trainer.engram, trainer.hasher)
    write_snapshot(fresh / MEMORY_DIR, {spec: trainer.tables.packed_blocks(spec) for spec in specs})
    shutil.rmtree(directory, ignore_errors=True)
    fresh.rename(directory)


def _with_map_size(trainer: Trainer) -> Backbone:
    """Record the size of the token map that the rows were trained with in the configuration."""
    engram = dataclasses.replace(trainer.engram, compressed_vocab_size=trainer.hasher.token_map.size)
    trainer.model.config = dataclasses.replace(trainer.model.config, engram=engram)  # type: ignore[type-var]
    return trainer.model
