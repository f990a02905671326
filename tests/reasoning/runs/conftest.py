"""Sources, runs of them, and what interrupts a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reasoning.runs.config import RunConfig
from reasoning.runs.parts import CORPUS
from reasoning.runs.run import train
from reasoning.training.trainer import StepReport, Trainer
from tests.reasoning.runs.small_run import prebuild, small_run, write_sources


class DeathError(Exception):
    """Stands for the death of the process."""


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("sources") / "project")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, sources: Path) -> Path:
    run = small_run(tmp_path_factory.mktemp("corpus"), sources)
    prebuild(run)
    return run.output / CORPUS


@pytest.fixture
def new_run(tmp_path: Path, sources: Path, corpus: Path) -> Callable[..., RunConfig]:
    """Makes a run whose corpus is there already."""

    def make(name: str = "run", **changes: Any) -> RunConfig:
        run = small_run(tmp_path / name, sources, **changes)
        shutil.copytree(corpus, run.output / CORPUS)
        return run

    return make


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, sources: Path, corpus: Path) -> Callable[[str], RunConfig]:
    """Returns an undisturbed run under an optimizer of the tables; it is not to be changed."""
    runs: dict[str, RunConfig] = {}

    def run_under(tables: str) -> RunConfig:
        if tables not in runs:
            run = small_run(tmp_path_factory.mktemp(tables), sources, tables)
            shutil.copytree(corpus, run.output / CORPUS)
            train(run, quiet=True)
            runs[tables] = run
        return runs[tables]

    return run_under


@pytest.fixture
def die_at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has the next training die as it is to take a step, once."""

    def at(number: int) -> None:
        step = Trainer.step

        def dying(self: Trainer, *arguments: Any, **named: Any) -> StepReport:
            if self.step_number + 1 == number:
                monkeypatch.setattr(Trainer, "step", step)
                raise DeathError(number)
            return step(self, *arguments, **named)

        monkeypatch.setattr(Trainer, "step", dying)

    return at


@pytest.fixture
def die_as_files_are_saved(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has the save of a checkpoint's state fail, after its tables are sealed: by death, or by an error; once."""

    def at(number: int, error: Exception | None = None) -> None:
        from reasoning.runs import checkpoints

        save, saves = checkpoints.save_file, []

        def failing(tensors: Any, path: Path) -> None:
            saves.append(path)
            if len(saves) == number:
                Path(path).write_bytes(b"half")
                raise error or DeathError(number)
            save(tensors, path)

        monkeypatch.setattr(checkpoints, "save_file", failing)

    return at
