"""What all workers of a run share: corpus, tokenizer, hasher, model, and the memory to start from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from memory_service.learning.state import Blocks, masters_of, state_spec, write_learning_snapshot
from memory_service.snapshots.snapshot import Snapshot, generations
from memory_service.snapshots.store import open_store
from memory_service.tables.spec import TableSpec
from reasoning.architectures.base import Backbone, ModelConfig
from reasoning.architectures.registry import architecture_of, build_backbone, read_model_config
from reasoning.checkpoint.load import load_model
from reasoning.config.engram import EngramConfig
from reasoning.corpora.build import build_corpus
from reasoning.corpora.config import CorpusConfig
from reasoning.corpora.order import SequenceOrder
from reasoning.corpora.tokens import Sequences, TokenShards
from reasoning.engram.hashing import NgramHasher
from reasoning.engram.memory_config import MEMORY_DIR
from reasoning.engram.model_hasher import build_hasher, table_specs
from reasoning.runs.checkpoints import Checkpoints, Position
from reasoning.runs.config import ModelChoice, RunConfig
from reasoning.runs.initial_rows import NormalRows
from reasoning.runs.presets import MODELS
from reasoning.text.tokenizer import TOKENIZER_FILE, Tokenizer
from reasoning.training.trainer import memory_of

CORPUS, MODEL = "corpus", "model"
_FIRST = 0  # generation of the tables before the first step


@dataclass(frozen=True)
class Parts:
    """The parts of a run that are prepared once and opened by every worker."""

    run: RunConfig
    """Configuration of the run."""
    shards: TokenShards
    """Training sequences of the corpus."""
    hasher: NgramHasher
    """Hasher of the model's tokenizer."""
    model: ModelConfig
    """Configuration of the model."""

    @classmethod
    def prepare(cls, run: RunConfig, progress: bool = False) -> Parts:
        """Build the corpus unless it is there, and open it.

        Raises:
            ValueError: sources, model or corpus cannot be used.
        """
        build_corpus(_corpus_config(run), run.output / CORPUS, progress=progress)
        return cls.open(run)

    @classmethod
    def open(cls, run: RunConfig) -> Parts:
        """Open what `prepare` has made.

        Raises:
            ValueError: something is missing, or does not fit together.
        """
        shards = TokenShards.open(run.output / CORPUS)
        model = _model_config(run, shards)
        tokenizer = Tokenizer.from_file(run.output / CORPUS / TOKENIZER_FILE)
        hasher = build_hasher(memory_of(model), tokenizer)
        engram = dataclasses.replace(memory_of(model), compressed_vocab_size=hasher.token_map.size)
        return cls(run, shards, hasher, _with_engram(model, engram))

    @property
    def specs(self) -> list[TableSpec]:
        """The tables of the model."""
        return table_specs(memory_of(self.model), self.hasher)

    @property
    def tokenizer_file(self) -> Path:
        """The tokenizer that the corpus was encoded with."""
        return self.run.output / CORPUS / TOKENIZER_FILE

    def new_model(self, device: torch.device) -> Backbone:
        """Return the model as it is before the first step: loaded, or drawn from the seed."""
        directory = model_directory(self.run)
        if directory is not None:
            model = load_model(directory, device).train()
            model.config = self.model
            return model
        generator = torch.Generator().manual_seed(self.run.training.seed)
        return build_backbone(self.model).initialise(generator).to(device)

    def order(self) -> SequenceOrder:
        """The order in which the sequences come."""
        return SequenceOrder(len(self.shards), self.run.training.seed)

    def sequences(self, step: int, rank: int, ranks: int) -> Sequences:
        """Return a worker's share of a step, counted from 1."""
        return self.shards.read(self.order().rank_indices(step - 1, self.run.training.batch, rank, ranks))

    def first_memory(self) -> str:
        """URI of the tables before the first step, which are written unless they are there."""
        base = self._base_memory()
        if self.run.training.tables.frozen:
            if base is None:
                raise ValueError(
                    "[tables] frozen: a new model has no tables yet; give a model directory, or train them"
                )
            return base.uri
        uri = Checkpoints(self.run.output).memory_uri
        optimizer = self.run.training.tables.optimizer
        if found := generations(open_store(uri)):
            if _FIRST not in found:
                raise ValueError(
                    f"output: no checkpoint in {self.run.output} is whole, and the tables before the first step are "
                    "deleted; restore a checkpoint from a copy, or name another folder"
                )
            snapshot = Snapshot.open(f"{uri}?generation={_FIRST}")
            wanted = {spec.name: spec for spec in (*self.specs, *(state_spec(spec, optimizer) for spec in self.specs))}
            if snapshot.specs != wanted:
                raise ValueError(
                    f"output: {uri} holds the tables of another model or optimizer; name another folder, or delete it"
                )
            return snapshot.uri
        return write_learning_snapshot(uri, {spec: self._masters(spec, base) for spec in self.specs}, optimizer).uri

    def check_position(self, position: Position) -> None:
        """Check that a checkpoint belongs to this corpus and batch size.

        Raises:
            ValueError: it does not: sequences would be left out or come twice.
        """
        if position.step == 0:
            return
        if position.corpus != self.shards.manifest.fingerprint:
            raise ValueError(
                f"output: the checkpoints in {self.run.output} belong to another corpus; name another folder"
            )
        if position.batch != self.run.training.batch:
            raise ValueError(
                f"[training] batch: {self.run.training.batch}, but the checkpoints in {self.run.output} "
                f"counted in batches of {position.batch}; keep to that"
            )

    def position(self, step: int, seconds: float) -> Position:
        """Return how far the run is."""
        return Position(step, seconds, self.run.training.batch, self.shards.manifest.fingerprint)

    def _base_memory(self) -> Snapshot | None:
        directory = model_directory(self.run)
        return None if directory is None else Snapshot.open(directory / MEMORY_DIR)

    def _masters(self, spec: TableSpec, base: Snapshot | None) -> Blocks:
        if base is None:
            return NormalRows(spec, self.model.initializer_range, self.run.training.seed)
        if base.table(spec.name).spec != spec:
            raise ValueError(f"[model] directory: its table {spec.name} is not that of its config.json and tokenizer")
        return masters_of(base, spec)


def model_directory(run: RunConfig) -> Path | None:
    """Return the model directory that a run goes on from, also of a folder of a run; None for a new model.

    Raises:
        ValueError: there is no model.
    """
    given = run.model.directory
    if given is None:
        return None
    for directory in (given, given / MODEL):
        if (directory / "config.json").is_file():
            return directory
    raise ValueError(f"[model] directory: {given} holds no model (config.json), and no run that has ended")


def _corpus_config(run: RunConfig) -> CorpusConfig:
    directory = model_directory(run)
    if directory is None:
        return run.corpus
    tokenizer = directory / TOKENIZER_FILE
    if run.corpus.tokenizer not in (None, tokenizer, directory):
        raise ValueError(f"[corpus] tokenizer: a model goes on with its own tokenizer, {tokenizer}; leave it out")
    return dataclasses.replace(run.corpus, tokenizer=tokenizer)


def _new_config(choice: ModelChoice) -> ModelConfig:
    raw = {**MODELS[choice.preset].to_dict(), **choice.config}
    known = MODELS[choice.preset].to_dict()
    if unknown := [name for name in choice.config if name not in known]:
        raise ValueError(f"[model] config: {unknown[0]} is no key of config.json; use {', '.join(known)}")
    return architecture_of(raw).read_config(raw)


def _with_engram(model: Any, engram: EngramConfig) -> ModelConfig:
    return dataclasses.replace(model, engram=engram)


def _model_config(run: RunConfig, shards: TokenShards) -> ModelConfig:
    directory = model_directory(run)
    config: Any = read_model_config(directory) if directory is not None else _new_config(run.model)
    if directory is None:
        config = dataclasses.replace(config, vocab_size=max(shards.manifest.vocab_size, run.corpus.vocab_size))
    if shards.manifest.vocab_size > config.vocab_size:
        raise ValueError(
            f"[corpus] the tokenizer has {shards.manifest.vocab_size} tokens, the model takes {config.vocab_size}"
        )
    if shards.window > config.max_position_embeddings:
        raise ValueError(
            f"[corpus] window: {shards.window} tokens, but the model has {config.max_position_embeddings} positions"
        )
    if run.training.mtp_weight and not config.num_nextn_predict_layers and directory is None:
        config = dataclasses.replace(config, num_nextn_predict_layers=1)
    return config
