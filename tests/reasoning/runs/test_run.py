"""From a folder of files to a model that the engine loads: new, gone on with, over learning and over frozen tables."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from memory_service import LocalMemory, Snapshot, pack_rows
from memory_service.tables.rows import unpack_rows
from memory_service.tables.spec import OPTIMIZER_SUFFIX
from reasoning.corpora.manifest import HELD_OUT
from reasoning.corpora.tokens import TokenShards
from reasoning.engine import Engine
from reasoning.request import Completion, Request, SamplingParams
from reasoning.runs.checkpoints import CheckpointError, Checkpoints
from reasoning.runs.config import ModelChoice
from reasoning.runs.evaluation import Documents, held_out_loss
from reasoning.runs.initial_rows import NormalRows
from reasoning.runs.parts import Parts
from reasoning.runs.progress import read_log
from reasoning.runs.run import HELD_OUT_BYTES, finish, load_weights, train
from tests.reasoning.runs.conftest import DeathError
from tests.reasoning.runs.small_run import SHAPE, STEPS, WINDOW, corpus_config, small_run, with_corpus, with_training


def rows_of(snapshot, name):
    spec = snapshot.specs[name]
    packed = np.concatenate([rows.copy() for _, rows in snapshot.read_blocks(name, range(spec.blocks))])
    return unpack_rows(packed, spec.row_format, spec.dim)


def served(snapshot):
    return [name for name in snapshot.specs if not name.endswith(OPTIMIZER_SUFFIX)]


def test_a_run_writes_a_model_its_log_and_its_loss(tmp_path, sources):
    run = small_run(tmp_path / "new" / "run", sources)
    loss = train(run, quiet=True)
    found = {path.name for path in run.output.iterdir()}
    assert found == {"corpus", "checkpoints", "model", "training.jsonl", "loss.svg", "tensorboard"}
    steps = read_log(run.output)
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert steps[-1]["loss"] < steps[0]["loss"]
    engine = Engine.from_pretrained(run.output / "model")
    held_out = Documents.of(TokenShards.open(run.output / "corpus", HELD_OUT))
    assert held_out.bytes < HELD_OUT_BYTES
    assert loss == held_out_loss(engine.model, engine.lookup, held_out, WINDOW)
    assert loss.bytes == held_out.bytes
    assert loss.bits_per_byte < 8
    assert torch.get_float32_matmul_precision() == "highest"  # as it was: other models in this process stay exact


def test_an_export_holds_what_was_trained(finished):
    run = finished("adagrad")
    parts, last = Parts.open(run), Checkpoints(run.output).newest()
    model = parts.new_model(torch.device("cpu"))
    load_weights(model, last)
    engine = Engine.from_pretrained(run.output / "model")
    assert engine.model.config.engram.compressed_vocab_size == parts.hasher.token_map.size
    for name, tensor in model.state_dict().items():
        np.testing.assert_allclose(engine.model.state_dict()[name], tensor, rtol=2**-8, atol=0)
    tables, memory = Snapshot.open(last.memory_uri), LocalMemory.load(run.output / "model" / "memory")
    assert sorted(memory.specs) == sorted(served(tables)) == ["engram.0", "engram.2"]
    for name, spec in memory.specs.items():
        masters = rows_of(tables, name + OPTIMIZER_SUFFIX)[:, : spec.dim]
        rows = memory.lookup(name, np.arange(spec.rows)).result()
        assert np.array_equal(rows.unique[rows.inverse], pack_rows(masters, spec.row_format))
    (result,) = engine.generate([Request("0", "def f", sampling=SamplingParams(max_new_tokens=2, ignore_eos=True))])
    assert isinstance(result, Completion)
    assert len(result.token_ids) == 2


def test_a_model_with_multi_token_prediction_is_exported_with_its_layer(new_run):
    run = new_run(mtp_weight=0.3, steps=2)
    train(run, quiet=True)
    assert Engine.from_pretrained(run.output / "model").model.has_mtp


def test_a_run_by_minutes_ends(new_run):
    run = new_run(steps=0, minutes=0.3 / 60)
    train(run, quiet=True)
    steps = read_log(run.output)
    assert steps[-1]["share"] == 1.0
    assert all(line["share"] < 1 for line in steps[:-1])
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))


def test_a_folder_that_is_no_run_is_left_alone(tmp_path, sources):
    output = tmp_path / "work"
    output.mkdir()
    (output / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"output: .* exists and is not the folder of a run; name another folder"):
        train(small_run(output, sources), quiet=True)
    with pytest.raises(ValueError, match=r"output: .*thesis.txt exists and is not the folder of a run"):
        train(small_run(output / "thesis.txt", sources), quiet=True)
    assert [path.name for path in output.iterdir()] == ["thesis.txt"]


def test_a_run_that_failed_before_its_first_step_may_be_run_again(tmp_path, sources):
    """Whether it had built its corpus in part, or found nothing to build one of."""
    run = small_run(tmp_path / "run", sources)
    (run.output / ".corpus.building").mkdir(parents=True)
    (run.output / ".corpus.building" / "train-00000.arrow").write_bytes(b"half")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="sources: no file is usable"):
        train(with_corpus(run, sources=(str(tmp_path / "empty"),)), quiet=True)
    assert train(with_training(run, steps=1), quiet=True).tokens > 0


def test_a_window_beyond_the_models_positions_is_refused(tmp_path, sources):
    run = dataclasses.replace(small_run(tmp_path / "run", sources), corpus=corpus_config(sources, window=65))
    with pytest.raises(ValueError, match=r"\[corpus\] window: 65 tokens, but the model has 64 positions"):
        train(run, quiet=True)


def test_a_key_that_no_config_has_is_refused(new_run):
    run = dataclasses.replace(new_run(), model=ModelChoice(config={**SHAPE, "hiden_size": 3}))
    with pytest.raises(ValueError, match=r"\[model\] config: hiden_size is no key of config.json; use .*hidden_size"):
        train(run, quiet=True)


def test_new_tables_cannot_be_frozen(new_run):
    with pytest.raises(ValueError, match=r"\[tables\] frozen: a new model has no tables yet; give a model directory"):
        train(new_run(frozen=True), quiet=True)


def test_there_is_no_model_without_a_checkpoint(new_run):
    with pytest.raises(CheckpointError, match=r"checkpoint: .* holds none; run the training"):
        finish(Parts.open(new_run()))


@pytest.fixture
def tuned(new_run, finished, tmp_path):
    """Makes a run that goes on from the model of another."""

    def make(name="tuned", whole_run=False, **changes):
        base = finished("sparse_adam").output
        run = small_run(tmp_path / name, finished("sparse_adam").corpus.sources[0], **changes)
        return dataclasses.replace(run, model=ModelChoice(directory=base if whole_run else base / "model"))

    return make


@pytest.mark.parametrize("whole_run", [False, True], ids=["model", "run"])
def test_a_model_is_gone_on_with_and_its_tables_learn(tuned, finished, whole_run):
    run, base = tuned(whole_run=whole_run, tables="adagrad"), finished("sparse_adam").output
    train(run, quiet=True)
    before, after = (read_log(output) for output in (base, run.output))
    assert after[0]["loss"] < before[0]["loss"] - 0.3  # what was learned is there
    old, new = (Snapshot.open(output / "model" / "memory") for output in (base, run.output))
    assert old.specs == new.specs
    assert all((rows_of(old, name) != rows_of(new, name)).any() for name in old.specs)
    assert json.loads((run.output / "model" / "config.json").read_text()) == json.loads(
        (base / "model" / "config.json").read_text()
    )
    assert (run.output / "model" / "tokenizer.json").read_bytes() == (base / "model" / "tokenizer.json").read_bytes()


def test_a_model_is_gone_on_with_over_frozen_tables(tuned, finished, die_at_step):
    base = finished("sparse_adam").output
    run, undisturbed = tuned(frozen=True), tuned("undisturbed", frozen=True)
    die_at_step(4)
    with pytest.raises(DeathError):
        train(run, quiet=True)
    assert train(run, quiet=True) == train(undisturbed, quiet=True)
    assert not (run.output / "checkpoints" / "memory").exists()
    old, new = (Snapshot.open(output / "model" / "memory") for output in (base, run.output))
    assert all(np.array_equal(rows_of(old, name), rows_of(new, name)) for name in old.specs)
    weights = [load_file(output / "model" / "model.safetensors") for output in (base, run.output, undisturbed.output)]
    assert any(not torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[2].items())


def test_a_folder_without_a_model_cannot_be_gone_on_with(tuned, tmp_path):
    run = dataclasses.replace(tuned(), model=ModelChoice(directory=tmp_path))
    with pytest.raises(ValueError, match=r"\[model\] directory: .* holds no model \(config.json\), and no run that"):
        train(run, quiet=True)


def test_a_model_keeps_its_own_tokenizer(tuned, tmp_path):
    with pytest.raises(ValueError, match=r"\[corpus\] tokenizer: a model goes on with its own tokenizer"):
        train(with_corpus(tuned(), tokenizer=tmp_path / "tokenizer.json"), quiet=True)


def test_multi_token_prediction_cannot_be_added_to_a_model_without_it(tuned):
    with pytest.raises(ValueError, match=r"mtp_weight: 0.3, but the model has no layer of multi-token prediction"):
        train(tuned(mtp_weight=0.3), quiet=True)


def test_new_tables_are_normal_and_depend_on_the_seed(new_run):
    spec = Parts.open(new_run()).specs[0]
    values = np.concatenate(list(NormalRows(spec, 0.02, 0)))
    assert (values.shape, values.dtype) == ((spec.rows, spec.dim), np.float32)
    assert abs(values.std() / 0.02 - 1) < 0.02
    assert abs(values.mean()) < 1e-3
    assert np.array_equal(values, np.concatenate(list(NormalRows(spec, 0.02, 0))))
    assert not np.array_equal(values, np.concatenate(list(NormalRows(spec, 0.02, 1))))
    small = dataclasses.replace(spec, block_rows=256)
    blocks = list(NormalRows(small, 0.02, 0))
    assert [len(block) for block in blocks] == [small.block_length(number) for number in range(small.blocks)]
    assert len({block[:1].tobytes() for block in blocks}) == len(blocks)
    other = dataclasses.replace(spec, layer=spec.layer + 1)
    assert not np.array_equal(values, np.concatenate(list(NormalRows(other, 0.02, 0))))


def test_every_loss_of_a_log_is_finite(finished):
    assert all(math.isfinite(line["loss"]) for line in read_log(finished("adam").output))
