"""run.toml: every section is read, and what cannot be is refused by section and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from memory_service.learning.optimizers import OptimizerConfig
from reasoning.corpora.config import CorpusConfig
from reasoning.runs.config import CheckpointConfig, ClusterConfig, ModelChoice, RunConfig
from reasoning.training.config import TablesConfig, TrainingConfig

WHOLE = """
output = "runs/mine"
[model]
preset = "tiny-code"
config = {hidden_size = 64, engram_vocab_size = [500, 600]}
[corpus]
sources = ["stdlib", "pypi:tomli"]
suffixes = [".py", ".pyi"]
window = 128
fim_rate = 0
tokenizer = "tok/tokenizer.json"
[training]
minutes = 3
batch = 16
optimizer = "muon"
learning_rate = 1
activation_checkpointing = true
[tables]
optimizer = "adam"
beta2 = 0.99
rate_factor = 2
[checkpoints]
steps = 50
keep = 3
[cluster]
workers = 4
min_workers = 2
shards = 3
gpu = true
reader = "ray"
"""


def read(tmp_path: Path, text: str) -> RunConfig:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return RunConfig.read(path)


def test_all_sections_are_read(tmp_path):
    optimizer = OptimizerConfig("adam", beta2=0.99)
    assert read(tmp_path, WHOLE) == RunConfig(
        output=tmp_path / "runs/mine",
        training=TrainingConfig(
            minutes=3.0, batch=16, optimizer="muon", learning_rate=1.0, activation_checkpointing=True,
            tables=TablesConfig(optimizer, rate_factor=2.0),
        ),
        model=ModelChoice(config={"hidden_size": 64, "engram_vocab_size": [500, 600]}),
        corpus=CorpusConfig(
            sources=("stdlib", "pypi:tomli"), suffixes=(".py", ".pyi"), window=128, fim_rate=0.0,
            tokenizer=tmp_path / "tok/tokenizer.json",
        ),
        checkpoints=CheckpointConfig(steps=50, keep=3),
        cluster=ClusterConfig(workers=4, min_workers=2, shards=3, gpu=True, reader="ray"),
    )  # fmt: skip


def test_what_is_left_out_has_its_default(tmp_path):
    run = read(tmp_path, 'output = "a"\n[training]\nsteps = 3\n')
    assert run == RunConfig(tmp_path / "a", TrainingConfig(steps=3))
    assert type(run.training.learning_rate) is float


def test_relative_paths_begin_at_the_folder_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    text = 'output = "../out"\n[training]\nsteps = 1\n[model]\ndirectory = {}\n'
    run = read(tmp_path, text.format('"models/a"'))
    assert (run.output, run.model.directory) == (tmp_path / "../out", tmp_path / "models/a")
    run = read(tmp_path, text.replace("../out", "/out").format('"~/a"'))
    assert (run.output, run.model.directory) == (Path("/out"), Path("/home/someone/a"))


def test_sources_that_are_folders_begin_at_the_folder_of_the_file_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    text = '[corpus]\nsources = ["stdlib", "src", "../*/lib", "/abs", "~/mine", "pypi:tomli", "debian:hello"]'
    run = read(tmp_path, f'output = "a"\n[training]\nsteps = 1\n{text}')
    folder = str(tmp_path)
    expected = ("stdlib", f"{folder}/src", f"{folder}/../*/lib", "/abs", "/home/someone/mine")
    assert run.corpus.sources == (*expected, "pypi:tomli", "debian:hello")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r'output: the file names no folder of the run; add output = "FOLDER"'),
        ("output = 5", "output: 5 must be a path"),
        ("colour = 1", "config: colour is unknown; use output, model, corpus, training, tables, checkpoints, cluster"),
        ("training = 3", r"config: training must be a section, \[training\]"),
        ("[training]\nstep = 3", r"\[training\] step: unknown; use steps, minutes, batch"),
        ("[training]\nsteps = 3.5", r"\[training\] steps: 3.5 must be of type int"),
        ("[training]\nsteps = true", r"\[training\] steps: True must be of type int"),
        ("[training]\nbatch = true\nsteps = 1", r"\[training\] batch: True must be of type int"),
        ('[training]\nsteps = 1\nlearning_rate = "1"', r"\[training\] learning_rate: '1' must be of type float"),
        ("[training]\nsteps = 1\nlearning_rate = true", r"\[training\] learning_rate: True must be of type float"),
        ("[training]\nsteps = 1\nactivation_checkpointing = 1", r"\[training\] activation_checkpointing: 1 must be"),
        ("[training]\nsteps = 1\nbatch = 0", r"\[training\] batch: 0 must be at least 1"),
        ("[training]\nbatch = 2", r"\[training\] steps: 0, minutes: 0.0: give exactly one"),
        ("[training]\nsteps = 1\n[training.tables]\nfrozen = true", r"\[training\] tables: unknown; .*\[tables\]"),
        ("[tables]\nfrozen = 1", r"\[tables\] frozen: 1 must be of type bool"),
        ("[tables]\nrate_factor = 0", r"\[tables\] rate_factor: 0.0 must be above 0"),
        ('[tables]\noptimizer = "lion"', r"\[tables\] optimizer: 'lion' is no optimizer of rows"),
        ("[tables]\noptimizer = 7", r"\[tables\] optimizer: 7 must be of type str"),
        ("[tables]\nbeta1 = 1.0", r"\[tables\] beta1: 1.0 must be"),
        ("[tables]\nmomentum = 1.0", r"\[tables\] momentum: unknown; use rate_factor, frozen"),
        ('[model]\npreset = "huge"', r"\[model\] preset: 'huge' is unknown; use tiny-code"),
        ("[model]\nconfig = 3", r"\[model\] config: 3 must be a section"),
        ("[model]\ndirectory = 3", r"\[model\] directory: 3 must be a path"),
        ('[model]\ndirectory = "a"\nconfig = {hidden_size = 1}', r"\[model\] config: a model that is gone on with"),
        ('[corpus]\nsources = "stdlib"', r"\[corpus\] sources: 'stdlib' must be a list of texts"),
        ("[corpus]\nsources = [1]", r"\[corpus\] sources: \[1\] must be a list of texts"),
        ("[corpus]\nwindow = 1", r"\[corpus\] window: 1 is too small"),
        ("[checkpoints]\nminutes = 0", r"\[checkpoints\] minutes: 0.0 must be above 0"),
        ("[checkpoints]\nkeep = 0", r"\[checkpoints\] steps: 0, keep: 0: use at least 0 and 1"),
        ("[cluster]\nshards = 0", r"\[cluster\] shards: 0 must be at least 1"),
        ("[cluster]\nworkers = 1\nmin_workers = 2", r"\[cluster\] min_workers: 2 must be at most `workers`, 1"),
        ('[cluster]\nreader = "csv"', r"\[cluster\] reader: 'csv' is unknown; use arrow or ray"),
        ("[cluster]\nnodes = 2", r"\[cluster\] nodes: unknown; use workers, min_workers"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_section_and_key(tmp_path, text, message):
    lines = text.splitlines()
    top = [] if not text or text.startswith("output") else ['output = "a"']
    if not any(line == "[training]" for line in lines) and text != "training = 3":
        lines += ["[training]", "steps = 1"]
    with pytest.raises(ValueError, match=message):
        read(tmp_path, "\n".join([*top, *lines]))


def test_a_file_that_is_missing_or_no_toml_is_refused_by_its_path(tmp_path):
    with pytest.raises(ValueError, match=r"config: \S+/none.toml cannot be read: .*No such file"):
        RunConfig.read(tmp_path / "none.toml")
    with pytest.raises(ValueError, match=r"config: \S+/run.toml cannot be read: "):
        read(tmp_path, "output = ")
