"""`engram train`: its flags and its file become a run, and its result a line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from cluster.cli import main
from memory_service.learning.optimizers import OptimizerConfig
from reasoning.corpora.config import CorpusConfig
from reasoning.runs import run as runs
from reasoning.runs.config import CheckpointConfig, ClusterConfig, ModelChoice, RunConfig
from reasoning.runs.evaluation import HeldOutLoss
from reasoning.training.config import TablesConfig, TrainingConfig

LOSS = HeldOutLoss(nats=math.log(2) * 3000, tokens=700, bytes=2000)


@pytest.fixture
def trained(monkeypatch):
    """Function that runs `engram train` and returns the run that it was asked for."""
    given = []
    monkeypatch.setattr(runs, "train", lambda run: given.append(run) or LOSS)

    def run(*arguments: object) -> RunConfig:
        given.clear()
        assert main(["train", *map(str, arguments)]) == 0
        [found] = given
        return found

    return run


@pytest.fixture
def refused(monkeypatch, capsys):
    """Function that runs `engram train`, which must refuse, and returns what it said."""
    monkeypatch.setattr(runs, "train", lambda run: pytest.fail("it trained"))

    def run(*arguments: object) -> str:
        try:
            code = main(["train", *map(str, arguments)])
        except SystemExit as error:
            code = error.code
        assert code not in (0, None)
        return capsys.readouterr().err

    return run


def test_a_run_ends_with_its_bits_a_byte_on_held_out_files(trained, tmp_path, capsys):
    trained("--output", tmp_path / "m", "--steps", 4)
    said = capsys.readouterr().out
    assert said == f"{tmp_path / 'm'}/model: 1.500 bits a byte on 2,000 bytes of files held out of training\n"


def test_an_hour_is_the_default(trained):
    assert trained("--output", "m") == RunConfig(Path("m"), TrainingConfig(minutes=60.0))


def test_flags_reach_the_run(trained):
    run = trained(
        *("--output", "m", "--source", "stdlib", "--source", "pypi:tomli", "--window", 64, "--steps", 9),
        *("--preset", "tiny-code", "--batch", 16, "--accumulation", 2, "--optimizer", "muon"),
        *("--learning-rate", 0.01, "--schedule", "cosine", "--precision", "bf16", "--activation-checkpointing"),
        *("--sequence-balance", 1e-4, "--mtp-weight", 0.3, "--fixed-reduction-order", "--seed", 3),
        *("--tables-optimizer", "adam", "--tables-beta2", 0.99, "--tables-rate-factor", 2),
        *("--checkpoint-minutes", 5, "--checkpoint-steps", 50, "--keep", 3),
    )
    assert run == RunConfig(
        output=Path("m"),
        training=TrainingConfig(
            steps=9, batch=16, accumulation=2, optimizer="muon", learning_rate=0.01, schedule="cosine",
            precision="bf16", activation_checkpointing=True, sequence_balance=1e-4, mtp_weight=0.3,
            fixed_reduction_order=True, seed=3, tables=TablesConfig(OptimizerConfig("adam", beta2=0.99), 2.0),
        ),
        corpus=CorpusConfig(sources=("stdlib", "pypi:tomli"), window=64),
        checkpoints=CheckpointConfig(minutes=5.0, steps=50, keep=3),
    )  # fmt: skip


def test_flags_take_the_place_of_a_files_values(trained, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        'output = "mine"\n[corpus]\nwindow = 64\nfim_rate = 0.25\n[training]\nsteps = 7\nbatch = 2\n'
        '[tables]\noptimizer = "adagrad"\nrate_factor = 3\n[checkpoints]\nsteps = 4\nkeep = 5\n[cluster]\nshards = 2\n'
    )
    assert trained("--config", path) == RunConfig.read(path)
    run = trained(
        *("--config", path, "--minutes", 2, "--batch", 4, "--source", "stdlib", "--tables-optimizer", "sgd"),
        *("--keep", 1, "--frozen-tables", "--output", tmp_path / "other"),
    )
    assert run == RunConfig(
        output=tmp_path / "other",
        training=TrainingConfig(minutes=2.0, batch=4, tables=TablesConfig(OptimizerConfig("sgd"), 3.0, frozen=True)),
        corpus=CorpusConfig(window=64, fim_rate=0.25),
        checkpoints=CheckpointConfig(steps=4, keep=1),
        cluster=ClusterConfig(shards=2),
    )


def test_a_model_is_gone_on_with_over_frozen_tables(trained):
    run = trained("--output", "m", "--model", "models/tiny-code", "--frozen-tables", "--steps", 1)
    assert run.model == ModelChoice(directory=Path("models/tiny-code"))
    assert run.training.tables.frozen


def test_a_model_takes_the_place_of_a_files_shape_and_a_preset_that_of_its_model(trained, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('output = "a"\n[training]\nsteps = 1\n[model]\nconfig = {hidden_size = 64}\n')
    assert trained("--config", path, "--model", "m").model == ModelChoice(directory=Path("m"))
    path.write_text('output = "a"\n[training]\nsteps = 1\n[model]\ndirectory = "m"\n')
    assert trained("--config", path, "--preset", "tiny-code").model == ModelChoice()


def test_workers_train_on_ray_at_the_address(monkeypatch, capsys):
    job = pytest.importorskip("cluster.training.job")
    given = []
    monkeypatch.setattr(job, "train_on_ray", lambda *arguments: given.extend(arguments) or LOSS)
    command = ["train", "--output", "m", "--steps", "1", "--workers", "4", "--min-workers", "2", "--shards", "3"]
    assert main([*command, "--address", "HEAD:6379", "--unreachable", "4"]) == 0
    run, address = given
    assert run.cluster == ClusterConfig(workers=4, min_workers=2, shards=3, unreachable_s=4.0)
    assert address == "HEAD:6379"
    assert "1.500 bits a byte" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "output: give the folder of the run, or a --config that names it"),
        (["--output", "m", "--address", "a:1"], "address: a cluster is of use to workers only; give a number of"),
        (["--output", "m", "--model", "a", "--preset", "tiny-code"], "not allowed with argument --model"),
        (["--output", "m", "--steps", "1", "--minutes", "1"], "not allowed with argument --steps"),
        (["--output", "m", "--steps", "1", "--tables-optimizer", "lion"], "invalid choice: 'lion'"),
        (["--output", "m", "--steps", "1", "--batch", "0"], "batch: 0 must be at least 1"),
        (["--output", "m", "--window", "1"], "window: 1 is too small"),
        (["--config", "none.toml"], "config: none.toml cannot be read"),
        (["--output", "m", "--source", "debian:"], "--source: 'debian:' names no package; write it as"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(refused, flags, message):
    assert message in refused(*flags)
