"""A complete training run: sources in, model directory out."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import torch

from memory_service import LocalMemory
from memory_service.snapshots.snapshot import Snapshot
from memory_service.training.local import LocalLearningMemory
from memory_service.training.memory import LearningMemory
from reasoning.checkpoint.load import load_model
from reasoning.corpora.manifest import HELD_OUT
from reasoning.corpora.tokens import TokenShards
from reasoning.engram.memory_config import MEMORY_DIR
from reasoning.engram.row_lookup import RowLookup
from reasoning.runs.checkpoints import FOLDER, Checkpoint, CheckpointError, Checkpoints
from reasoning.runs.config import RunConfig
from reasoning.runs.evaluation import Documents, HeldOutLoss, held_out_loss
from reasoning.runs.export import export
from reasoning.runs.parts import CORPUS, MODEL, Parts
from reasoning.runs.progress import LOG_FILE, Bar, Records
from reasoning.runs.session import Events, Session
from reasoning.training.rows import FrozenTables

HELD_OUT_BYTES = 128 << 10
"""Size of the held-out documents that a run is evaluated on at its end: enough for two digits, within seconds."""
_LOOKUP_TIMEOUT_S = 60.0


def train(run: RunConfig, quiet: bool = False) -> HeldOutLoss:
    """Train in this process: build the corpus, go on from the last checkpoint or begin, and write `output`/model.

    Args:
        run: what to train; its section `cluster` is not looked at.
        quiet: show no progress.

    Returns:
        Loss of the model on the first held-out documents, about HELD_OUT_BYTES of them.

    Raises:
        ValueError: the configuration does not fit its sources, its model or an earlier run in the same folder.
        TrainingError: a step cannot be taken, for example because a gradient is not finite.
    """
    refuse_foreign(run.output)
    parts = Parts.prepare(run, progress=not quiet)
    checkpoints = Checkpoints(run.output)
    start = checkpoints.newest()
    with closing(_memory(parts, start)) as memory:
        snapshot = None
        if isinstance(memory, LocalLearningMemory):
            local, uri = memory, checkpoints.memory_uri
            snapshot = lambda: local.snapshot(uri)  # noqa: E731
        with Bar(run.output, quiet), Records(run.output, start.position.step if start else 0) as records:
            events = Events(records.on_step, records.on_problem)
            Session(parts, memory, start, snapshot, events).run()
    return finish(parts)


def finish(parts: Parts) -> HeldOutLoss:
    """Write the model of the last checkpoint to `output`/model, and evaluate it.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    last = Checkpoints(parts.run.output).newest()
    if last is None:
        raise CheckpointError(f"checkpoint: {parts.run.output} holds none; run the training")
    directory = parts.run.output / MODEL
    model = parts.new_model(torch.device("cpu"))
    load_weights(model, last)
    memory = Snapshot.open(last.memory_uri or parts.first_memory())
    export(model, parts.tokenizer_file, memory, parts.specs, directory)
    return evaluate(parts, directory)


def load_weights(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Give a model the weights of a checkpoint.

    Raises:
        CheckpointError: the checkpoint is damaged, or that of another model.
    """
    prefix = "model."
    state = {name.removeprefix(prefix): tensor for name, tensor in checkpoint.read().items() if name.startswith(prefix)}
    missing, unexpected = model.load_state_dict(state, strict=False)
    shared = set(dict(model.named_parameters())) | {name for name, _ in model.named_buffers()}
    if unexpected or shared.intersection(missing):
        raise CheckpointError(f"checkpoint: {checkpoint.path} is that of another model; use its own configuration")


def evaluate(parts: Parts, directory: Path) -> HeldOutLoss:
    """Evaluate a model directory, with its weights and rows as they were rounded for it."""
    model = load_model(directory)
    documents = Documents.of(TokenShards.open(parts.run.output / CORPUS, HELD_OUT), HELD_OUT_BYTES)
    with closing(LocalMemory.load(str(directory / MEMORY_DIR))) as memory:
        lookup = RowLookup(parts.hasher, parts.specs, memory, _LOOKUP_TIMEOUT_S)
        return held_out_loss(model, lookup, documents, parts.shards.window)


def refuse_foreign(output: Path) -> None:
    """Refuse a folder that holds something other than a run.

    Raises:
        ValueError: it does.
    """
    if not output.exists():
        return
    found = {path.name for path in output.iterdir()} if output.is_dir() else {output.name}
    if found and not found & {LOG_FILE, CORPUS, f".{CORPUS}.building", MODEL, FOLDER}:
        raise ValueError(f"output: {output} exists and is not the folder of a run; name another folder")


def _memory(parts: Parts, start: Checkpoint | None) -> LearningMemory:
    tables = parts.run.training.tables
    if tables.frozen:
        return FrozenTables(LocalMemory.load(parts.first_memory()))
    if start is None:
        return LocalLearningMemory(parts.first_memory(), tables.optimizer)
    return LocalLearningMemory(start.memory_uri, tables.optimizer, start.position.step)
