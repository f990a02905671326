"""Pushes that are lost, repeated and late, shards that die, and networks that lose packets and stall."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness.hosts import missing, network
from benchmarks.harness.servers import memory_shards
from memory_service import MemoryClient, OldVersion
from memory_service.errors import InvalidRequest, MemoryServiceError, ShardUnavailable, WrongStep
from memory_service.learning.optimizers import OptimizerConfig
from memory_service.training.control import LearningControl, begin_attempt, end_attempt
from memory_service.training.local import LocalLearningMemory
from memory_service.training.remote import RemoteLearningMemory
from tests.memory_service.training.conftest import SPECS
from tests.memory_service.training.test_equality import RATE, assert_same, rank_batches, train, train_dense, values_of

FIRST = SPECS[0]


class Unreliable:
    """Calls of shards that are sent late, twice, or whose answers are lost."""

    def __init__(self, monkeypatch, seed):
        self._random, self.faults = random.Random(seed), 0
        for name in ("push", "commit", "squared_norm"):
            monkeypatch.setattr(LearningControl, name, self._around(getattr(LearningControl, name)))

    def _around(self, call):
        def around(control, *arguments):
            kind = self._random.choice(["twice", "lost answer", "never sent", "late", "fine", "fine"])
            self.faults += kind != "fine"
            if kind == "never sent":
                raise ShardUnavailable("lost on the way there")
            if kind == "late":
                time.sleep(0.003)
            result = call(control, *arguments)
            if kind == "twice":
                result = call(control, *arguments)
            if kind == "lost answer":
                raise ShardUnavailable("lost on the way back")
            return result

        return around


@pytest.mark.parametrize("name", ["adagrad", "adam"])
def test_calls_that_are_repeated_late_and_lost_change_nothing(shards, monkeypatch, name):
    config = OptimizerConfig(name)
    memory = shards(3, config)
    memories = memory.ranks(memory.begin(2, config))
    unreliable = Unreliable(monkeypatch, seed=3)
    monkeypatch.setattr("memory_service.training.pusher._PAUSE_S", 0.001)
    train(memories)
    assert unreliable.faults > 100
    assert_same(values_of(memories[0], 50), train_dense(config, 2)[0], name)


def test_gradients_that_are_not_finite_are_refused_with_their_step(shards):
    config = OptimizerConfig("sgd")
    memory = shards(2, config)
    [rank] = memory.ranks(memory.begin(1, config))
    gradients = np.full((1, FIRST.dim), np.nan, np.float32)
    with pytest.raises(InvalidRequest, match=r"rank 0, step 1, table 'engram.1': the gradient of row 7 is not finite"):
        rank.push(1, FIRST.name, np.array([7]), gradients, RATE).result()
    train([rank])  # the step can still be taken


def test_a_lookup_for_a_step_that_is_not_committed_is_refused(shards):
    config = OptimizerConfig("sgd")
    memory = shards(2, config)
    [rank] = memory.ranks(memory.begin(1, config))
    with pytest.raises(OldVersion):
        rank.lookup(FIRST.name, np.array([7]), 1).result()


def test_workers_of_an_attempt_that_is_over_are_refused(shards):
    config = OptimizerConfig("sgd")
    memory = shards(2, config)
    [zombie] = memory.ranks(memory.begin(1, config))
    [rank] = memory.ranks(memory.begin(1, config))
    with pytest.raises(WrongStep, match="is over"):
        zombie.push(1, FIRST.name, *next(rank_batches(FIRST, 0)), RATE).result()
    train([rank])
    assert_same(values_of(rank, 50), train_dense(config, 1)[0], "sgd")


def test_a_cache_never_keeps_rows_of_steps_that_were_undone(shards):
    """Clients drop what is older than the version that they see, so versions go on where steps go back."""
    config = OptimizerConfig("sgd")
    memory = shards(1, config)
    [rank] = memory.ranks(memory.begin(1, config))
    with ExitStack() as stack:
        from memory_service import ClientConfig

        client = MemoryClient.connect(memory.address, config=ClientConfig(cache_bytes=1 << 20))
        stack.callback(client.close)
        train([rank])
        ids = np.arange(FIRST.rows)
        trained = [client.lookup(FIRST.name, ids).result() for _ in range(2)][-1].unique.copy()
        memory.begin(1, config, snapshot_uri=memory.snapshot.uri)
        client.lookup(FIRST.name, np.array([0]), min_version=52).result()
        undone = client.lookup(FIRST.name, ids).result()
        start = LocalLearningMemory(memory.snapshot.uri, config)
        np.testing.assert_array_equal(undone.unique[undone.inverse].view(np.float32), values_of(start, 0)[FIRST.name])
        assert not np.array_equal(undone.unique, trained)


def test_a_shard_that_dies_ends_the_attempt_within_the_time_that_was_given(shards):
    config = OptimizerConfig("sgd")
    memory = shards(2, config)
    attempt = memory.begin(1, config)
    rank = RemoteLearningMemory.connect(memory.address, attempt, 0, unreachable_s=0.5)
    memory.servers[1].stop(0)
    pushed = [rank.push(1, spec.name, *next(rank_batches(spec, 0)), RATE) for spec in SPECS]
    with pytest.raises(ShardUnavailable, match="shard-1"):
        [push.result(10) for push in pushed]
    rank.close()


def test_a_memory_without_optimizer_state_is_refused(cluster_of_served_rows):
    with pytest.raises(MemoryServiceError, match="has no optimizer state"):
        begin_attempt(cluster_of_served_rows, 1, 0, OptimizerConfig("sgd"))


@pytest.fixture
def cluster_of_served_rows(tmp_path, stack):
    from memory_service import write_snapshot
    from tests.memory_service.conftest import Cluster, packed_of, spec_of

    spec = spec_of()
    write_snapshot(tmp_path / "served", {spec: packed_of(spec)})
    return Cluster(tmp_path / "served", [spec], stack).start(1).servers[0].address


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=f"several hosts on this machine: {missing()}")
def test_training_over_a_network_that_loses_packets_and_stalls_equals_training_in_one_process(learning_snapshot):
    """Shards on three hosts, two ranks, 2 ms of round trip, 1 % of packets lost, each host cut off once."""
    config = OptimizerConfig("adagrad")
    snapshot = learning_snapshot(config)
    with ExitStack() as stack:
        net = stack.enter_context(network(3, round_trip_s=0.002, loss=0.01))
        uri = Path(snapshot.uri.partition("?")[0])
        servers = stack.enter_context(memory_shards(uri, 3, hosts=net.hosts))
        attempt = begin_attempt(servers[0].address, 2, 0, config)
        memories = [RemoteLearningMemory.connect(servers[0].address, attempt, rank) for rank in range(2)]
        for memory in memories:
            stack.callback(memory.close)
        for delay, host in enumerate(net.hosts):
            timer = threading.Timer(0.2 + 0.7 * delay, net.stall, [host, 0.5])
            timer.start()
            stack.callback(timer.join)
        with ThreadPoolExecutor(1) as threads:
            threads.submit(train, memories).result(120)
        assert_same(values_of(memories[0], 50), train_dense(config, 2)[0], "adagrad")
        end_attempt(servers[0].address, attempt)
