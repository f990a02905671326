"""Small runs: six steps with a checkpoint after every second one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from reasoning.corpora.build import build_corpus
from reasoning.corpora.config import CorpusConfig
from reasoning.runs.config import CheckpointConfig, ModelChoice, RunConfig
from reasoning.runs.parts import CORPUS
from tests.reasoning.training.small import source, training

WINDOW = 24
STEPS = 6
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "n_routed_experts": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "max_position_embeddings": 64,
    "engram_layer_ids": [0, 2],
    "engram_n_heads": 2,
    "engram_vocab_size": [300, 300],
}
SAME = ("step", "loss", "tokens", "rate", "gradient_norm", "expert_load", "gates", "share")
"""What a line of the log has that does not depend on the speed of the machine."""


def write_sources(root: Path) -> Path:
    for number in range(48):
        path = root / f"package_{number % 6}" / f"module_{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source(number))
    return root


def corpus_config(sources: Path, **changes: Any) -> CorpusConfig:
    values = {"window": WINDOW, "vocab_size": 320, "held_out_share": 0.2, "similarity": 1.0}
    return CorpusConfig(**{"sources": (str(sources),), **values, **changes})


def small_run(
    output: Path, sources: Path, tables: str = "sparse_adam", frozen: bool = False, **changes: Any
) -> RunConfig:
    """A run of a new model; changes are fields of its training."""
    return RunConfig(
        output=output,
        training=training(tables, frozen, **{"steps": STEPS, **changes}),
        model=ModelChoice(config=SHAPE),
        corpus=corpus_config(sources),
        checkpoints=CheckpointConfig(steps=2),
    )


def with_training(run: RunConfig, **changes: Any) -> RunConfig:
    return dataclasses.replace(run, training=dataclasses.replace(run.training, **changes))


def with_corpus(run: RunConfig, **changes: Any) -> RunConfig:
    return dataclasses.replace(run, corpus=dataclasses.replace(run.corpus, **changes))


def prebuild(run: RunConfig) -> None:
    build_corpus(run.corpus, run.output / CORPUS)
