"""The whole path on a real Ray: two memory shards, two reasoning workers, and what happens when one of them dies."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from cluster.batch.executors.open_executor import open_executor
from cluster.batch.executors.ray_executor import RayExecutor
from cluster.batch.job import run_job
from cluster.batch.output import JobOutput
from cluster.batch.sidecar import JobIdentity
from cluster.cli import main
from cluster.commands.memory_report import MemoryReport
from cluster.pool.named_pools import find_pool, pool_exists, serve_pool, start_pool, stop_pool, wait_for_pool
from cluster.pool.policies.plan import Shape
from cluster.ray_metrics import RayMetrics
from cluster.ray_runtime import fetch
from cluster.workers import actors
from cluster.workers.actors import ReasoningActor
from cluster.workers.options import ClusterOptions
from memory_service import LocalMemory, MemoryClient, SnapshotError
from memory_service.shard.shard import Shard
from memory_service.snapshots.writer import extend_snapshot
from reasoning.engine import EngineConfig
from reasoning.request import Choice, Completion, SamplingParams
from tests.cluster.on_ray import process_of, shard_processes, wait_until

pytestmark = pytest.mark.slow

SHIPPED = Path(__file__).parents[2] / "models" / "tiny-code"
LINES = 40
SAMPLING = SamplingParams(max_new_tokens=6, seed=0)
IDENTITY = JobIdentity("tiny", vars(SAMPLING))


@pytest.fixture(scope="module")
def executor(ray, tiny_model):
    with open_executor(tiny_model, ClusterOptions(workers=2, shards=2, engine=EngineConfig(max_batch=4))) as executor:
        yield executor


@pytest.fixture(scope="session")
def source(tmp_path_factory, write_prompts):
    return write_prompts(tmp_path_factory.mktemp("job") / "in.jsonl", LINES)


@pytest.fixture(scope="session")
def expected(tiny_model, source, read_records):
    """What one process with embedded tables answers."""
    target = source.with_name("expected.jsonl")
    assert generate(tiny_model, source, target, "--workers", 0) == 0
    return read_records(target)


def generate(model, source, target, *extra):
    argv = ["generate", "--model", model, "--input", source, "--output", target, "--max-new-tokens", 6]
    return main([str(arg) for arg in [*argv, *extra]])


def run(source, target, executor, during=lambda: None):
    """Run a job, and do something once after its first lines are written."""
    todo = [during]

    class Output(JobOutput):
        def write(self, records, digest):
            super().write(records, digest)
            while todo:
                todo.pop()()

    with Output(target, source, IDENTITY) as output:
        return run_job(source, output, SAMPLING, executor, batch_size=4)


def is_ours(process):
    with suppress(psutil.NoSuchProcess):
        return any(name in process.name() for name in ("MemoryPool", "ShardActor", "ReasoningActor"))


def end(process):
    with suppress(psutil.NoSuchProcess):
        process.kill()


@contextmanager
def pool_of(model, shards, name, **options):
    pool = start_pool(str(model / "memory"), Shape(shards), name, **options)
    try:
        wait_for_pool(pool)
        yield pool
    finally:
        stop_pool(pool)


def test_two_workers_and_two_shards_answer_as_one_process_does(executor, source, expected, tmp_path, read_records):
    report = run(source, tmp_path / "out.jsonl", executor)
    assert read_records(tmp_path / "out.jsonl") == expected
    assert (report.lines, report.errors, report.output_tokens) == (LINES, 0, 6 * LINES)
    for actor in executor.actors:
        stats = fetch(actor.stats.remote())[-1]
        assert stats.output_tokens > 0
        assert set(stats.memory.shard_rows) == {"shard-0", "shard-1"}


def test_the_shipped_model_says_the_same_wherever_it_runs(ray, tmp_path, read_records, capsys):
    source = tmp_path / "in.jsonl"
    prompts = ["import os", "def main(argv=None):", "class Stack:", "for i in", "raise", "x = [", "# The", "with open("]
    source.write_text("".join(json.dumps({"prompt": prompt, "max_new_tokens": 20}) + "\n" for prompt in prompts))
    layouts = [(0, 1, 1), (0, 1, 16), (1, 3, 2)]  # workers, shards, batch
    answers = []
    for number, (workers, shards, batch) in enumerate(layouts):
        target = tmp_path / f"{number}.jsonl"
        layout = ["--workers", workers, "--shards", shards, "--max-batch", batch]
        assert generate(SHIPPED, source, target, *layout) == 0
        answers.append([record["token_ids"] for record in read_records(target)])
    assert answers[0] == answers[1] == answers[2]
    assert all(len(ids) > 1 for ids in answers[0])
    err = capsys.readouterr().err
    assert f"{len(prompts)} lines (0 with errors)" in err
    assert all(f"shard-{index} " in err for index in range(3))


def test_bad_lines_do_not_end_a_job(executor, tmp_path, read_records):
    source = tmp_path / "in.jsonl"
    source.write_text(
        '{"prompt": "x"}\nnonsense\n{"id": 3, "prompt": ""}\n{"prompt_token_ids": [9999]}\n{"prompt": "y"}\n'
    )
    assert run(source, tmp_path / "out.jsonl", executor).errors == 3
    records = read_records(tmp_path / "out.jsonl")
    assert [(r["id"], r["finish_reason"]) for r in records] == [
        ("line-1", "length"),
        (None, "error"),
        (3, "error"),
        ("line-4", "error"),
        ("line-5", "length"),
    ]


def test_a_killed_worker_costs_no_line(executor, source, expected, tmp_path, read_records):
    victim = process_of(executor.actors[0])
    run(source, tmp_path / "out.jsonl", executor, lambda: os.kill(victim, signal.SIGKILL))
    assert read_records(tmp_path / "out.jsonl") == expected
    assert process_of(executor.actors[0]) != victim


def test_killed_shards_cost_no_line(ray, executor, source, expected, tmp_path, read_records):
    [name] = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True) if "/" not in actor["name"]]
    pool = find_pool(name)
    before, epoch = shard_processes(name), fetch(pool.describe.remote()).placement.epoch

    def kill_all():
        for process in before.values():
            os.kill(process, signal.SIGKILL)

    run(source, tmp_path / "out.jsonl", executor, kill_all)
    assert read_records(tmp_path / "out.jsonl") == expected
    assert fetch(pool.describe.remote()).placement.epoch > epoch
    wait_until(lambda: {stats.rows > 0 for stats in fetch(pool.describe.remote()).stats.values()} == {True})
    assert not set(before.values()) & set(shard_processes(name).values())


def test_a_pool_heals_by_itself_and_can_be_described(ray, tiny_model, capsys):
    with pool_of(tiny_model, 2, "healing") as pool:
        address = wait_for_pool(pool)
        assert main(["memory", "describe", address]) == 0
        assert "epoch 1, 2 shards, 2 tables" in capsys.readouterr().out
        os.kill(shard_processes("healing")["shard-1"], signal.SIGKILL)

        wait_until(lambda: MemoryReport.of(address).placement.epoch == 2)  # nobody has called refresh()
        report = MemoryReport.of(address).to_json()
    assert [shard["shard"] for shard in report["shards"]] == ["shard-0", "shard-1"]
    assert sum(shard["blocks"]["engram.0"] for shard in report["shards"]) == report["tables"][0]["blocks"]


def test_ray_takes_every_kind_of_metric(ray, caplog):
    shard = Shard("shard-0")
    shard.counters.answered("engram.0", 5, 1320)
    shard.counters.spent("gather", 0.001)
    RayMetrics(shard.collect, {"shard": "shard-0"}).close()
    assert caplog.text == ""


def test_a_detached_pool_is_joined_by_name_and_leaves_no_process(ray, tiny_model):
    with pool_of(tiny_model, 1, "shared", detached=True) as pool:
        again = start_pool(str(tiny_model / "memory"), Shape(3), "shared")
        assert wait_for_pool(again) == wait_for_pool(pool)
        processes = shard_processes("shared")
        assert len(processes) == 1
    wait_until(lambda: not any(map(psutil.pid_exists, processes.values())))


def damaged(model, directory, name, change):
    """A copy of a model in which the first file of that name is changed."""
    shutil.copytree(model, directory)
    victim = next(directory.rglob(name))
    victim.write_bytes(change(victim.read_bytes()))
    return directory


def last_error(capsys):
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.splitlines()[-1]


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_a_flipped_bit_of_the_memory_is_located(ray, tiny_model, source, tmp_path, capsys):
    model = damaged(tiny_model, tmp_path / "model", "*.arrow", flipped)
    assert generate(model, source, tmp_path / "out.jsonl", "--shards", 1) == 2
    assert re.search(r"engram: error: .*\.arrow.* block \d+: the checksum does not match", last_error(capsys))


def test_a_pool_that_cannot_start_from_the_newest_generation_serves_the_last_good_one(
    ray, tiny_model, tmp_path, caplog
):
    memory = shutil.copytree(tiny_model / "memory", tmp_path / "memory")
    reference = LocalMemory.load(memory)
    [spec, *_] = whole = reference.specs.values()
    older = set(memory.rglob("*.arrow"))
    newest = extend_snapshot(memory, {spec: np.zeros((spec.rows, spec.row_bytes), np.uint8) for spec in whole}, 1)
    for file in set(memory.rglob("*.arrow")) - older:
        file.write_bytes(flipped(file.read_bytes()))

    pool, address = serve_pool(str(memory), Shape(2), "older")
    try:
        assert f"generation {newest.generation} is passed over: shard-" in caplog.text
        with closing(MemoryClient.connect(address)) as client:
            ids = np.arange(spec.rows)
            got, want = (memory.lookup(spec.name, ids).result() for memory in (client, reference))
            assert (got.unique[got.inverse] == want.unique[want.inverse]).all()
    finally:
        stop_pool(pool)
    with pytest.raises(SnapshotError, match="the checksum does not match"):
        serve_pool(newest.uri, Shape(2), "pinned")
    assert not pool_exists("pinned")


def test_a_truncated_model_is_named(ray, plain_model, source, tmp_path, capsys):
    model = damaged(plain_model, tmp_path / "model", "*.safetensors", lambda content: content[: len(content) // 2])
    assert generate(model, source, tmp_path / "out.jsonl") == 2
    assert "model.safetensors" in last_error(capsys)


def test_a_killed_job_leaves_no_process_and_repeats_no_line(tiny_model, source, expected, tmp_path, read_records):
    target = tmp_path / "out.jsonl"
    argv = ["generate", "--model", tiny_model, "--input", source, "--output", target]
    argv += ["--max-new-tokens", "6", "--batch-size", "1", "--shards", "1"]
    with subprocess.Popen([sys.executable, "-m", "cluster.cli", *map(str, argv)], stderr=subprocess.DEVNULL) as job:
        wait_until(lambda: target.exists() and target.read_bytes().count(b"\n") >= 5)
        family = psutil.Process(job.pid).children(recursive=True)
        job.kill()
    ours = [process for process in family if is_ours(process)]
    assert len(ours) == 3  # pool, shard, worker
    _, alive = psutil.wait_procs(ours, timeout=60)
    assert not alive
    for process in family:  # Ray's own agents take their time on a busy machine
        end(process)
    assert 5 <= len(read_records(target)) < LINES
    assert generate(tiny_model, source, target, "--workers", 0) == 0
    assert read_records(target) == expected


def test_a_job_joins_a_cluster_and_leaves_it_as_it_was(ray, tiny_model, source, expected, tmp_path, read_records):
    address = ray.get_runtime_context().gcs_address
    argv = ["generate", "--model", tiny_model, "--input", source, "--output", tmp_path / "out.jsonl"]
    argv += ["--max-new-tokens", 6, "--shards", 1, "--address", address]
    job = subprocess.run([sys.executable, "-m", "cluster.cli", *map(str, argv)], capture_output=True, text=True)
    assert job.returncode == 0, job.stderr
    assert f"{LINES} lines (0 with errors)" in job.stderr
    assert read_records(tmp_path / "out.jsonl") == expected
    wait_until(lambda: ray.available_resources()["CPU"] == 4 - 2)  # the session's own two workers


class Stillborn(ReasoningActor):
    """A worker that does not survive loading its model."""

    def ready(self):
        os._exit(1)


def test_workers_that_die_while_loading_are_an_error_instead_of_a_hang(ray, tiny_model, monkeypatch):
    monkeypatch.setattr(actors, "ReasoningActor", Stillborn)
    monkeypatch.setattr(actors, "_RETRIES", 1)
    with pytest.raises(ValueError, match="workers: a worker keeps dying while it loads the model; look in Ray's logs"):
        actors.start_workers(tiny_model, ClusterOptions(workers=1), None)


def perishable_actor(ray):
    """A worker without a model that does not survive a prompt with poison in it; it restarts at once."""

    class Perishable:
        def __init__(self):
            self.incarnation = str(os.getpid())

        def ready(self):
            return self.incarnation

        def generate(self, requests):
            if any(request.prompt == "poison" for request in requests):
                os._exit(1)
            return [Completion(r.id, (Choice(0, r.prompt.upper(), (1,), "stop"),), 1) for r in requests]

    return ray.remote(Perishable).options(num_cpus=0, max_restarts=-1, max_task_retries=3).remote()


def test_a_line_that_ends_every_worker_is_given_up_and_the_rest_goes_on(ray, tmp_path, read_records):
    prompts = ["a", "b", "c", "poison", "e", "f"]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    actor = perishable_actor(ray)
    try:
        with JobOutput(target, source, IDENTITY) as output:
            run_job(source, output, SAMPLING, RayExecutor([actor]), batch_size=2)
    finally:
        ray.kill(actor)
    records = read_records(target)
    assert [record["text"] for record in records] == ["A", "B", "C", "", "E", "F"]
    assert "killed its worker 3 times (killed, crashed or out of memory)" in records[3]["error"]["message"]
