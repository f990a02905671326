"""Trainers of the small model, and kernels against references."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.training.config import TrainingConfig
from reasoning.training.trainer import Trainer
from tests.reasoning.training.small import MODEL, hasher, local_memory, new_model

NewTrainer = Callable[..., Trainer]


@pytest.fixture
def new_trainer(tmp_path: Path) -> NewTrainer:
    """Makes a trainer of a fresh model whose tables are in this process."""
    made = 0

    def make(config: TrainingConfig, model: DeepseekV3Config = MODEL, seed: int = 0, std: float = 0.02) -> Trainer:
        nonlocal made
        made += 1
        return Trainer(new_model(model, seed), hasher(), local_memory(tmp_path / str(made), config, std, seed), config)

    return make


@pytest.fixture
def by_torch_and_by_kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], tuple[Any, Any]]:
    """Function that calls another with references forced, then with kernels forced and no reference for rows."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("training is on the CPU, where kernels run in the interpreter alone")

    def run(function: Callable[[], Any]) -> tuple[Any, Any]:
        monkeypatch.setenv("ENGRAM_KERNELS", "torch")
        expected = function()
        monkeypatch.setenv("ENGRAM_KERNELS", "triton")
        monkeypatch.setattr("kernels.row_unpack.F", None)
        return expected, function()

    return run
