"""A run that was interrupted and is run again ends with the log and the model of one that was not, bit by bit."""

from __future__ import annotations

import errno
import logging
import shutil
from dataclasses import replace

import pytest

from memory_service import InvalidRequest
from memory_service.learning.optimizers import OptimizerConfig
from memory_service.snapshots.snapshot import Snapshot, generations
from memory_service.snapshots.store import open_store
from reasoning.runs.checkpoints import CheckpointError, Checkpoints
from reasoning.runs.progress import read_log
from reasoning.runs.run import train
from tests.reasoning.runs.conftest import DeathError
from tests.reasoning.runs.small_run import SAME, STEPS, with_corpus, with_training


def steps_of(run):
    return [{key: line[key] for key in SAME} for line in read_log(run.output) if "step" in line]


def model_files(run):
    """Content of the model, without the random names of the files that hold the rows."""
    files = {path.name: path.read_bytes() for path in (run.output / "model").iterdir() if path.is_file()}
    assert set(files) == {"config.json", "model.safetensors", "tokenizer.json"}
    return files


def rows_of(run):
    snapshot = Snapshot.open(run.output / "model" / "memory")
    return {
        name: [rows.tobytes() for _, rows in snapshot.read_blocks(name, range(spec.blocks))]
        for name, spec in snapshot.specs.items()
    }


def assert_alike(run, undisturbed):
    assert len(steps_of(undisturbed)) == STEPS
    assert steps_of(run) == steps_of(undisturbed)
    assert model_files(run) == model_files(undisturbed)
    assert rows_of(run) == rows_of(undisturbed)


@pytest.mark.parametrize("tables", ["sparse_adam", "adam"])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 6])
def test_it_goes_on_after_dying_before_between_and_right_after_checkpoints(
    new_run, finished, die_at_step, tables, number
):
    run = new_run(tables=tables)
    die_at_step(number)
    with pytest.raises(DeathError):
        train(run, quiet=True)
    assert [line["step"] for line in read_log(run.output)] == list(range(1, number))
    train(run, quiet=True)
    assert_alike(run, finished(tables))


@pytest.mark.parametrize("save", [1, 2, 3])
def test_it_goes_on_after_dying_while_a_checkpoint_is_written(new_run, finished, die_as_files_are_saved, save):
    """The tables of a checkpoint that never came to be are sealed already."""
    run = new_run(tables="adam")
    die_as_files_are_saved(save)
    with pytest.raises(DeathError):
        train(run, quiet=True)
    newest = Checkpoints(run.output).newest()
    assert (newest.position.step if newest else 0) == 2 * (save - 1)
    train(run, quiet=True)
    assert_alike(run, finished("adam"))
    assert not list(run.output.rglob("*unfinished*"))


def test_it_goes_on_again_and_again(new_run, finished, die_at_step):
    run = new_run(tables="adagrad")
    for number in (2, 3, 4, 6):
        die_at_step(number)
        with pytest.raises(DeathError):
            train(run, quiet=True)
    train(run, quiet=True)
    assert_alike(run, finished("adagrad"))


def test_a_run_that_has_ended_is_evaluated_again_and_takes_no_step(new_run, finished):
    run = new_run()
    losses = [train(run, quiet=True) for _ in range(2)]
    assert losses[0] == losses[1]
    assert_alike(run, finished("sparse_adam"))


@pytest.mark.parametrize("damage", ["training.safetensors", "checkpoint.json", "generation"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(new_run, finished, die_at_step, damage, caplog):
    run = new_run()
    die_at_step(6)
    with pytest.raises(DeathError):
        train(run, quiet=True)
    checkpoints = Checkpoints(run.output)
    if damage == "generation":
        newest = max(generations(open_store(checkpoints.memory_uri)))
        (checkpoints.memory_uri / f"manifest-{newest:06d}.json").unlink()
    else:
        path = checkpoints.newest().path / damage
        path.write_bytes(path.read_bytes()[:-3])
    with caplog.at_level(logging.WARNING):
        train(run, quiet=True)
    assert "step-00000004 is passed over" in caplog.text
    assert_alike(run, finished("sparse_adam"))


def test_after_a_damaged_checkpoint_other_settings_may_train_over_the_same_steps(new_run, die_at_step):
    """Their tables differ from those that the snapshot holds of the same step."""
    run = new_run()
    die_at_step(6)
    with pytest.raises(DeathError):
        train(run, quiet=True)
    (Checkpoints(run.output).newest().path / "checkpoint.json").unlink()
    run = with_training(run, learning_rate=1e-3)
    train(run, quiet=True)
    assert Checkpoints(run.output).newest().position.step == STEPS
    assert not [line for line in read_log(run.output) if "problem" in line]


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(new_run, finished, die_as_files_are_saved):
    run = new_run()
    die_as_files_are_saved(2, OSError(errno.ENOSPC, "No space left on device"))
    train(run, quiet=True)
    assert_alike(run, finished("sparse_adam"))
    [problem] = [line["problem"] for line in read_log(run.output) if "problem" in line]
    assert "checkpoint: step 4 cannot be written to" in problem
    assert problem.endswith("The run goes on without this checkpoint")
    assert [path.name for path in sorted(Checkpoints(run.output).folder.glob("step-*"))] == [
        "step-00000002",
        "step-00000006",
    ]


def test_the_last_checkpoint_must_be_written(new_run, finished, die_as_files_are_saved):
    run = new_run()
    die_as_files_are_saved(3, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(CheckpointError, match=r"checkpoint: step 6 cannot be written .* free some space"):
        train(run, quiet=True)
    assert Checkpoints(run.output).newest().position.step == 4
    train(run, quiet=True)
    assert_alike(run, finished("sparse_adam"))


def test_another_batch_size_is_refused(new_run, die_at_step):
    run = new_run()
    die_at_step(4)
    with pytest.raises(DeathError):
        train(run, quiet=True)
    with pytest.raises(
        ValueError, match=r"\[training\] batch: 2, but the checkpoints in .* batches of 4; keep to that"
    ):
        train(with_training(run, batch=2), quiet=True)


def test_another_corpus_is_refused(new_run, die_at_step):
    run = new_run()
    die_at_step(4)
    with pytest.raises(DeathError):
        train(run, quiet=True)
    other = with_corpus(run, seed=5)
    with pytest.raises(ValueError, match="holds a corpus of another configuration"):
        train(other, quiet=True)
    (run.output / "corpus").rename(run.output.with_name("moved"))
    with pytest.raises(ValueError, match=r"output: the checkpoints in .* belong to another corpus; name another"):
        train(other, quiet=True)


@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (2, ValueError, "output: .* holds the tables of another model or optimizer; name another folder, or delete it"),
        (4, InvalidRequest, "state of 64 values a row, adam needs 97 values"),
    ],
    ids=["before the first checkpoint", "after it"],
)
def test_another_optimizer_of_the_tables_is_refused(new_run, die_at_step, number, error, message):
    run = new_run(tables="adagrad")
    die_at_step(number)
    with pytest.raises(DeathError):
        train(run, quiet=True)
    with pytest.raises(error, match=message):
        train(with_training(run, tables=replace(run.training.tables, optimizer=OptimizerConfig("adam"))), quiet=True)


def test_a_run_whose_checkpoints_are_all_lost_says_so(new_run, die_at_step):
    run = new_run()
    die_at_step(4)
    with pytest.raises(DeathError):
        train(run, quiet=True)
    shutil.rmtree(run.output / "checkpoints" / "step-00000002")
    with pytest.raises(ValueError, match=r"output: no checkpoint in .* is whole, and the tables before the first step"):
        train(run, quiet=True)
