"""Training on a real Ray: workers, shards and whole runs are killed, and end like an undisturbed run."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cluster.train_demo import descendants
from cluster.training.job import train_on_ray
from cluster.training.reading import ray_reader
from memory_service import Snapshot
from memory_service.learning.optimizers import OptimizerConfig
from reasoning.corpora.config import CorpusConfig
from reasoning.runs.config import CheckpointConfig, ClusterConfig, ModelChoice, RunConfig
from reasoning.runs.parts import Parts
from reasoning.runs.progress import read_log
from reasoning.training.config import TablesConfig, TrainingConfig
from reasoning.training.trainer import TrainingError
from tests.reasoning.runs.small_run import SHAPE as SMALL_SHAPE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
STEPS, EVERY = 24, 6
SHAPE = {**SMALL_SHAPE, "intermediate_size": 48, "engram_vocab_size": [500, 500]}


def small_run(folder: Path, output: str, **cluster) -> RunConfig:
    """A run of a few seconds on some files that it writes."""
    for number in range(24):
        path = folder / "source" / f"part_{number % 6}" / f"module_{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            f"def area_{number}_{i}(width, height):\n    return width * height + {i * number}\n" for i in range(20)
        ]
        path.write_text("\n".join(lines))
    return RunConfig(
        output=folder / output,
        training=TrainingConfig(
            steps=STEPS,
            batch=4,
            learning_rate=5e-3,
            fixed_reduction_order=True,
            tables=TablesConfig(OptimizerConfig("adam")),
        ),
        model=ModelChoice(config=SHAPE),
        corpus=CorpusConfig(sources=(str(folder / "source"),), vocab_size=300, window=32, similarity=1.0),
        checkpoints=CheckpointConfig(steps=EVERY),
        cluster=ClusterConfig(**{"workers": 2, "shards": 3, "cpus_per_worker": 0.5, "unreachable_s": 2.0, **cluster}),
    )


def steps_of(run: RunConfig) -> int:
    """Number of steps in the log."""
    return sum("step" in line for line in read_log(run.output))


def outcome(run: RunConfig):
    """What two runs must have in common: every loss, the weights, and every block of tables and optimizer state."""
    losses = [line["loss"] for line in read_log(run.output) if "loss" in line]
    tables = Snapshot.open(run.output / "checkpoints" / "memory").tables
    digests = {name: [block.digest for block in table.blocks] for name, table in tables.items()}
    return losses, (run.output / "model" / "model.safetensors").read_bytes(), digests


@pytest.fixture(scope="module")
def undisturbed(ray, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    run = small_run(folder, "run")
    train_on_ray(run, quiet=True)
    return folder, outcome(run)


class Killer:
    """Kills a process of this test's Ray by its title, once the run has come to a step."""

    def __init__(self, run: RunConfig, kills: dict[int, str]) -> None:
        self._run, self._kills, self.killed = run, sorted(kills.items()), []
        self._before = {title: set(descendants(os.getpid(), title)) for title in kills.values()}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()

    def _watch(self):
        left = list(self._kills)
        while left and not self._ended.wait(0.05):
            step, title = left[0]
            if steps_of(self._run) >= step:
                new = set(descendants(os.getpid(), title)) - self._before[title]
                if new:
                    os.kill(min(new), signal.SIGKILL)
                    self.killed.append(title)
                    left.pop(0)


def test_a_run_whose_worker_and_shard_are_killed_ends_like_an_undisturbed_one(undisturbed):
    folder, expected = undisturbed
    run = small_run(folder, "disturbed")
    with Killer(run, {4: "ray::RayTrainWorker", 15: "ray::ShardActor"}) as killer:
        train_on_ray(run, quiet=True)
    assert killer.killed == ["ray::RayTrainWorker", "ray::ShardActor"]
    assert outcome(run) == expected


def test_a_run_that_is_killed_as_a_whole_goes_on_when_it_is_run_again(undisturbed, ray):
    folder, expected = undisturbed
    run = small_run(folder, "killed")
    config = folder / "run.py"
    config.write_text(
        "import sys\nfrom pathlib import Path\nfrom cluster.training.job import train_on_ray\n"
        "from tests.cluster.training.test_ray_training import small_run\n"
        f"train_on_ray(small_run(Path({str(folder)!r}), 'killed'), quiet=True)\n"
    )
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root), "RAY_AUTH_MODE": "disabled"}
    driver = subprocess.Popen([sys.executable, str(config)], cwd=root, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while steps_of(run) < EVERY + 3:
        assert driver.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline, "the run has not come to its steps"
        time.sleep(0.02)
    everything = [*descendants(driver.pid, ""), driver.pid]
    for process in everything:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
    driver.wait()
    assert steps_of(run) < STEPS
    train_on_ray(run, quiet=True)
    assert outcome(run) == expected


def test_a_loss_that_is_not_finite_ends_the_run_at_once_and_names_the_step(tmp_path, ray):
    run = small_run(tmp_path, "run")
    run = dataclasses.replace(run, training=dataclasses.replace(run.training, learning_rate=1e20, clip_norm=1e30))
    with pytest.raises(TrainingError, match=r"step \d+: the (loss|gradient norm) is (nan|inf)"):
        train_on_ray(run, quiet=True)


def test_frozen_tables_are_read_by_all_workers_and_stay_as_they_are(undisturbed, ray):
    folder, _ = undisturbed
    base = folder / "run" / "model"
    run = small_run(folder, "tuned")
    frozen = dataclasses.replace(run.training, steps=4, tables=TablesConfig(frozen=True))
    run = dataclasses.replace(run, training=frozen, model=ModelChoice(directory=base))
    train_on_ray(run, quiet=True)
    before, after = (Snapshot.open(path / "memory").tables for path in (base, run.output / "model"))
    assert {n: [b.digest for b in t.blocks] for n, t in after.items()} == {
        n: [b.digest for b in t.blocks] for n, t in before.items()
    }
    assert (base / "model.safetensors").read_bytes() != (run.output / "model" / "model.safetensors").read_bytes()


def test_ray_data_reads_the_sequences_of_each_worker_in_their_order(undisturbed, ray):
    folder, _ = undisturbed
    parts = Parts.open(small_run(folder, "run"))
    for rank in range(2):
        read = ray_reader(parts, first=5, rank=rank, ranks=2)
        for step in range(5, 20):
            found, expected = read(step), parts.sequences(step, rank, 2)
            np.testing.assert_array_equal(found.tokens, expected.tokens)
            np.testing.assert_array_equal(found.documents, expected.documents)
