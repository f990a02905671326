"""A detached pool on a Ray cluster with memory nodes: what its users see while it changes and while things break."""

from __future__ import annotations

import os
import signal
from collections import Counter

import numpy as np
import pytest

from cluster.cli import main
from cluster.pool.config import PoolConfig
from cluster.pool.named_pools import find_pool, pool_address, start_pool, stop_pool, wait_for_pool
from cluster.pool.policies.plan import Shape
from cluster.ray_runtime import fetch
from memory_service import LocalMemory, MemoryClient
from memory_service.errors import ShardError
from tests.cluster.lookups import lookups, progress
from tests.cluster.on_ray import process_of, shard_processes, wait_until

pytestmark = pytest.mark.slow

NAME = "elastic"
QUICK = PoolConfig(check_s=0.2, unresponsive_s=2.0, give_up_s=8.0, start_s=60.0, grace_s=0.5, spread_s=1.0)
LABELS = {"engram/role": "memory"}


@pytest.fixture(scope="module")
def add_node(ray, cluster):
    """Function that adds a memory node; those that are left go with the module."""
    nodes = []

    def add(count=1):
        nodes.extend(
            cluster.add_node(wait=False, num_cpus=0, labels=LABELS, object_store_memory=80 << 20) for _ in range(count)
        )
        cluster.wait_for_nodes()
        return nodes[-1]

    add.nodes = nodes
    yield add
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node)


@pytest.fixture(scope="module")
def pool(ray, add_node, tiny_model):
    """Five shards on three memory nodes, each block on two of them."""
    add_node(3)
    pool = start_pool(str(tiny_model / "memory"), Shape(5, 2), NAME, detached=True, config=QUICK)
    yield pool
    stop_pool(find_pool(NAME))


@pytest.fixture(scope="module")
def reference(tiny_model):
    return LocalMemory.load(tiny_model / "memory")


def epoch():
    return fetch(find_pool(NAME).describe.remote()).placement.epoch


def wait_for_epoch(after):
    wait_until(lambda: epoch() > after)
    pool_address(NAME)


@pytest.fixture
def healthy(pool, ray):
    """The pool, every shard of it serving, where it should."""
    wait_until_at_rest(pool)
    return pool


def wait_until_at_rest(pool):
    wait_until(lambda: fetch(pool.describe.remote()).at_rest)


def shards_on(pool, nodes):
    """How many shards of the pool are on each of these nodes."""
    counts = Counter(fetch(pool.describe.remote()).nodes.values())
    return [counts[node.node_id] for node in nodes]


def test_shards_are_on_memory_nodes_as_evenly_as_can_be(ray, healthy, add_node):
    assert sorted(shards_on(healthy, add_node.nodes)) == [1, 2, 2]


@pytest.mark.parametrize("stroke", [signal.SIGKILL, signal.SIGSTOP])
def test_a_shard_that_dies_or_hangs_is_not_noticed(healthy, reference, stroke):
    before, victim = epoch(), max(shard_processes(NAME).values())
    with lookups(pool_address(NAME), reference) as (wrong, done):
        os.kill(victim, stroke)
        progress(done)
        wait_for_epoch(before)
        progress(done)
    assert wrong == []
    assert victim not in shard_processes(NAME).values()


def test_a_node_with_several_shards_goes_away_and_shards_move_to_one_that_joins_and_nothing_is_noticed(
    ray, healthy, reference, cluster, add_node, capsys
):
    lost = add_node.nodes.pop(shards_on(healthy, add_node.nodes).index(2))
    with lookups(pool_address(NAME), reference) as (wrong, done):
        cluster.remove_node(lost, allow_graceful=False)
        progress(done)
        wait_until(lambda: sorted(shards_on(healthy, add_node.nodes)) == [2, 3])
        wait_until_at_rest(healthy)
        progress(done)
        joined = add_node()
        wait_until(lambda: sorted(shards_on(healthy, add_node.nodes)) == [1, 2, 2])
        wait_until_at_rest(healthy)
        progress(done)
    assert wrong == []
    described = fetch(healthy.describe.remote())
    assert set(shard_processes(NAME)) == set(described.shape.names) == set(described.nodes)
    assert main(["memory", "describe", pool_address(NAME)]) == 0
    assert capsys.readouterr().out.count(joined.node_id[:12]) == shards_on(healthy, [joined])[0] > 0


def test_the_pool_may_die_itself(ray, healthy, reference):
    before, shards = process_of(healthy), shard_processes(NAME)
    with lookups(pool_address(NAME), reference) as (wrong, done):
        os.kill(before, signal.SIGKILL)
        progress(done)
        pool_address(NAME)
        progress(done)
    assert wrong == []
    assert process_of(healthy) != before
    assert shard_processes(NAME) == shards
    shape = fetch(healthy.describe.remote()).shape
    assert (shape.shards, shape.replicas) == (5, 2)


def test_commands_start_scale_and_stop_a_pool_under_lookups(ray, add_node, reference, tiny_model, capsys):
    def engram(*words):
        code = main(["memory", *map(str, words), "--name", "by-hand"])
        said = capsys.readouterr()
        return code, said.out + said.err

    code, said = engram("start", "--snapshot", tiny_model / "memory", "--shards", 1)
    assert code == 0
    address = said.split("engram memory by-hand serving on ")[1].strip()
    with lookups(address, reference) as (wrong, done):
        for shards in (3, 2):
            code, said = engram("scale", "--shards", shards)
            assert (code, said.split(",")[0]) == (0, f"engram memory by-hand: {shards} shards")
            progress(done)
    assert wrong == []
    assert main(["memory", "describe", "by-hand"]) == 0
    assert ", 2 shards, 2 tables" in capsys.readouterr().out
    code, said = engram("start", "--snapshot", tiny_model / "memory")
    assert (code, "a pool 'by-hand' runs already" in said) == (2, True)
    code, said = engram("scale", "--shards", 1, "--replicas", 2)
    assert (code, "replicas: 2 copies of a block do not fit on 1 shards" in said) == (2, True)
    assert engram("stop") == (0, "engram memory by-hand: stopped\n")
    code, said = engram("stop")
    assert (code, "no memory pool 'by-hand' on this cluster" in said) == (2, True)


def test_a_lone_copy_that_dies_is_an_error_at_once_and_heals_by_itself(ray, add_node, reference, tiny_model):
    pool = start_pool(str(tiny_model / "memory"), Shape(2), "lone", config=QUICK)
    client = MemoryClient.connect(wait_for_pool(pool))
    [table, *_], answers = reference.specs, []
    ids = np.arange(0, reference.specs[table].rows, 97)

    def answer():
        try:
            rows = client.lookup(table, ids, timeout_s=2.0).result()
        except ShardError as error:
            answers.append(error.shard)
        else:
            answers.append((rows.unique[rows.inverse] == reference.lookup(table, ids).result().unique).all())
        return answers[-1]

    try:
        assert answer()
        os.kill(shard_processes("lone")["shard-1"], signal.SIGKILL)
        assert answer() == "shard-1"
        wait_until(lambda: answer() != "shard-1")
        assert all(answers)
    finally:
        client.close()
        stop_pool(pool)
