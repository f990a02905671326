"""A model that learns in seconds, its data, its tables, and trainers of it; worker processes use it too."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memory_service.learning.optimizers import OptimizerConfig
from memory_service.learning.state import write_learning_snapshot
from memory_service.snapshots.snapshot import Snapshot
from memory_service.tables.rows import unpack_rows
from memory_service.tables.spec import TableSpec
from memory_service.training.local import LocalLearningMemory
from memory_service.training.memory import LearningMemory
from reasoning.architectures.deepseek_v3.backbone import DeepseekV3Backbone
from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.config.engram import EngramConfig
from reasoning.corpora.tokens import Sequences
from reasoning.engram.hashing import NgramHasher
from reasoning.engram.model_hasher import build_hasher, table_specs
from reasoning.runs.initial_rows import NormalRows
from reasoning.runs.presets import TINY_CODE
from reasoning.text.tokenizer import Tokenizer
from reasoning.training.config import TablesConfig, TrainingConfig
from reasoning.training.trainer import StepReport, Trainer, memory_of
from tests.reasoning.conftest import END, byte_tokenizer

WINDOW, BATCH = 24, 4
MODEL = dataclasses.replace(
    TINY_CODE,
    vocab_size=257,
    hidden_size=32,
    intermediate_size=64,
    moe_intermediate_size=16,
    num_hidden_layers=3,
    n_routed_experts=4,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=8,
    max_position_embeddings=64,
    bos_token_id=END,
    eos_token_id=(END,),
    engram=EngramConfig(
        layer_ids=(0, 2),
        max_ngram_size=3,
        n_heads=2,
        head_dim=8,
        vocab_size=(300, 300),
        pad_token_id=END,
        conv_kernel=4,
        row_format="fp32",
    ),
)
WITH_MTP = dataclasses.replace(MODEL, num_nextn_predict_layers=1)


def training(tables: str = "sparse_adam", frozen: bool = False, **changes: Any) -> TrainingConfig:
    """Settings of a run whose loss falls quickly."""
    values = {"steps": 40, "batch": BATCH, "learning_rate": 5e-3, **changes}
    return TrainingConfig(**values, tables=TablesConfig(OptimizerConfig(tables), frozen=frozen))


@cache
def hasher() -> NgramHasher:
    return build_hasher(memory_of(MODEL), Tokenizer(byte_tokenizer()))


@cache
def specs() -> tuple[TableSpec, ...]:
    """The tables of MODEL, in blocks small enough to be divided among shards."""
    return tuple(dataclasses.replace(spec, block_rows=128) for spec in table_specs(memory_of(MODEL), hasher()))


def source(number: int) -> str:
    """Regular enough to be learned in seconds, and different in every file."""
    lines = [f'"""Module number {number}."""', "", "import math", ""]
    for i in range(5 + number % 7):
        lines += [f"def function_{number}_{i}(value):", f"    return math.sqrt(value + {i * number})", ""]
    return "\n".join(lines)


@cache
def _stream() -> tuple[np.ndarray, np.ndarray]:
    """Tokens and document numbers of 40 files end to end, each after an end-of-text token."""
    files = [[END, *Tokenizer(byte_tokenizer()).backend.encode(source(number)).ids] for number in range(40)]
    return np.concatenate(files), np.repeat(np.arange(len(files)), [len(file) for file in files])


def sequences(step: int, count: int = BATCH, seed: int = 0, window: int = WINDOW) -> Sequences:
    """The batch of a step, which depends on its number and the seed alone."""
    tokens, documents = _stream()
    starts = np.random.default_rng([seed, step]).integers(0, len(tokens) - window - 1, count)
    places = starts[:, None] + np.arange(window + 1)
    return Sequences(tokens[places].astype(np.int64), documents[places].astype(np.int64))


def share_of(batch: Sequences, rank: int, ranks: int) -> Sequences:
    """What one of several workers has of a batch."""
    size = len(batch.tokens) // ranks
    mine = slice(rank * size, (rank + 1) * size)
    return Sequences(batch.tokens[mine], batch.documents[mine])


def new_model(config: DeepseekV3Config = MODEL, seed: int = 0) -> DeepseekV3Backbone:
    return DeepseekV3Backbone(config).initialise(torch.Generator().manual_seed(seed))


def transpose_in_memory(model: DeepseekV3Backbone) -> None:
    """Lay matrices out as those of a model that was loaded may be; their values stay."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and ("proj" in name or "down" in name):
            parameter.data = parameter.data.transpose(-1, -2).contiguous().transpose(-1, -2)


def write_tables(uri: Path, optimizer: OptimizerConfig, std: float = 0.02, seed: int = 0) -> Snapshot:
    return write_learning_snapshot(uri, {spec: NormalRows(spec, std, seed) for spec in specs()}, optimizer)


def local_memory(uri: Path, config: TrainingConfig, std: float = 0.02, seed: int = 0) -> LocalLearningMemory:
    optimizer = config.tables.optimizer
    return LocalLearningMemory(write_tables(uri, optimizer, std, seed).uri, optimizer)


def values_of(memory: LearningMemory, step: int) -> dict[str, np.ndarray]:
    """All rows of all tables after a step."""
    found = {}
    for spec in specs():
        rows = memory.lookup(spec.name, np.arange(spec.rows), step).result()
        found[spec.name] = unpack_rows(rows.unique, spec.row_format, spec.dim)[rows.inverse]
    return found


def take_steps(trainer: Trainer, steps: int, seed: int = 0, ahead: bool = True) -> list[StepReport]:
    """Train for some more steps, at the learning rates of the run, on this worker's share of each batch."""
    config, workers, reports = trainer.config, trainer.workers, []

    def batch(step: int) -> Sequences:
        return share_of(sequences(step, config.batch, seed), workers.rank, workers.count)

    last = trainer.step_number + steps
    mine = batch(trainer.step_number + 1)
    while trainer.step_number < last:
        number = trainer.step_number
        following = batch(number + 2) if ahead and number + 1 < last else None
        reports.append(trainer.step(mine, config.rate(config.share(number, trainer.seconds)), following))
        mine = following or batch(number + 2)
    trainer.finish()
    return reports
