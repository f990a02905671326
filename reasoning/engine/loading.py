"""Load the parts of an engine from a model directory: weights, tokenizer, memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

from memory_service import LocalMemory, Memory, MemoryClient
from reasoning.architectures.base import Backbone
from reasoning.checkpoint.load import load_model
from reasoning.config.generation import end_token_ids
from reasoning.engine.config import EngineConfig
from reasoning.engram.memory_config import MEMORY_DIR
from reasoning.engram.model_hasher import build_hasher, table_specs
from reasoning.engram.row_lookup import RowLookup
from reasoning.model.devices import choose_device, choose_dtype
from reasoning.text.tokenizer import TOKENIZER_FILE, Tokenizer


@contextmanager
def load_parts(
    directory: Path, memory: Memory | str | None, config: EngineConfig
) -> Iterator[tuple[Backbone, Tokenizer | None, Memory | None]]:
    """Load a model, its tokenizer if it has one, and open the memory that it needs.

    The caller closes the memory; it is closed here if the body of the `with` statement raises.

    Args:
        directory: config.json, *.safetensors, and where the model needs them tokenizer.json and memory/;
            generation_config.json adds to the tokens at which a completion ends.
        memory: a memory, or any shard's address; None loads `directory/memory` into this process.
        config: device, dtype, and options of the memory's client.

    Raises:
        ValueError: a file is missing or damaged, or the device does not exist.
        MemoryServiceError: the memory cannot be reached or loaded.
    """
    device = choose_device(config.device)
    model = load_model(directory, device, choose_dtype(config.dtype, device), read_only=True)
    ends = end_token_ids(directory, model.config.eos_token_id, model.config.vocab_size)
    model.config = dataclasses.replace(cast(Any, model.config), eos_token_id=ends)
    tokenizer = Tokenizer.from_file(directory) if (directory / TOKENIZER_FILE).is_file() else None
    with ExitStack() as opened:
        if model.config.engram is None:
            memory = None
        elif memory is None:
            memory = LocalMemory.load(str(directory / MEMORY_DIR))
            opened.callback(memory.close)
        elif isinstance(memory, str):
            memory = MemoryClient.connect(memory, config=config.client)
            opened.callback(memory.close)
        yield model, tokenizer, memory
        opened.pop_all()


def open_lookup(
    model: Backbone, tokenizer: Tokenizer | None, memory: Memory | None, timeout_s: float
) -> RowLookup | None:
    """Return the lookup of a model's memory rows; None for a model without Engram layers.

    Raises:
        ValueError: the tokenizer or the memory is missing, or does not fit the model.
        FingerprintMismatch: the memory holds other tables than the model was trained with.
    """
    engram = model.config.engram
    if engram is None:
        return None
    if tokenizer is None:
        raise ValueError("tokenizer: a model with Engram layers hashes its tokens by it; add its tokenizer.json")
    if memory is None:
        raise ValueError("memory: a model with Engram layers needs one; give a shard's address or a snapshot")
    hasher = build_hasher(engram, tokenizer)
    return RowLookup(hasher, table_specs(engram, hasher), memory, timeout_s, model.device, model.dtype)
