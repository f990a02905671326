"""A whole pool with real shards in this process: growing, shrinking, dying and coming back under lookups."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from dataclasses import replace

import pytest

from cluster.pool.config import PoolConfig
from cluster.pool.policies.autoscale import AutoscaleConfig
from cluster.pool.policies.plan import Shape
from cluster.pool.pool import MemoryPool
from memory_service import LocalMemory, Snapshot, extend_snapshot
from memory_service.errors import ShardUnavailable, SnapshotError
from memory_service.shard.shard import Shard
from memory_service.snapshots.origin import Origin
from memory_service.snapshots.upkeep import prune
from tests.cluster.lookups import lookups, progress
from tests.cluster.pool.in_process import InProcessFleet

QUICK = PoolConfig(check_s=0.05, probe_s=1.0, unresponsive_s=0.5, give_up_s=1.0, start_s=1.5, grace_s=0.3, spread_s=0.1)


class Pool(MemoryPool):
    """A pool with the fleet and the memory that it serves at hand."""

    def __init__(self, fleet, uri, shape, config):
        self.fleet = fleet
        super().__init__(fleet, Origin.of(Snapshot.open(uri)), shape, config)

    def wait(self, condition=lambda pool: pool.address() is not None):
        deadline = time.monotonic() + 60
        while not condition(self):
            assert time.monotonic() < deadline, "nothing happened for a minute"
            time.sleep(0.02)
        return self

    @property
    def epoch(self):
        placement = self.describe().placement
        return placement.epoch if placement else 0


@pytest.fixture
def fleet():
    """The shards of the pools of a test."""
    fleet = InProcessFleet()
    yield fleet
    fleet.close()


@pytest.fixture
def start(tiny_model, fleet):
    """Function that starts a pool of the tiny model's memory; all end with the test."""
    pools = []

    def start(*shape, uri=tiny_model / "memory", config=QUICK):
        pools.append(Pool(fleet, uri, Shape(*shape), config))
        return pools[-1]

    yield start
    for pool in pools:
        pool.shutdown()


def rows_of(snapshot, spec):
    """The blocks of a table."""
    return [rows.copy() for _, rows in snapshot.read_blocks(spec.name, range(spec.blocks))]


@pytest.fixture(scope="module")
def reference(tiny_model):
    return LocalMemory.load(tiny_model / "memory")


def test_shards_come_and_go_under_lookups(start, reference):
    pool = start(2).wait()
    with lookups(pool.address(), reference) as (wrong, done):
        progress(done)
        grown = pool.scale(shards=5)
        progress(done)
        shrunk = pool.scale(shards=3)
        progress(done)
    assert wrong == []
    assert (grown.shards, shrunk.shards) == (5, 3)
    for report in (grown, shrunk):
        assert 0 < report.moved <= 1.2 * report.ideal
    assert sorted(pool.fleet.servers) == ["shard-0", "shard-1", "shard-2"]


def test_replicas_are_added_under_lookups_and_then_a_death_is_not_noticed(start, reference):
    pool = start(3).wait()
    with lookups(pool.address(), reference) as (wrong, done):
        report = pool.scale(replicas=2)
        assert (report.replicas, report.moved) == (2, report.ideal)
        epoch = pool.epoch
        pool.fleet.kill("shard-1")
        progress(done)
        pool.wait(lambda pool: pool.epoch > epoch and pool.address())
        progress(done)
    assert wrong == []
    assert pool.fleet.held("shard-1") > 0


def test_a_lone_copy_is_read_again_from_the_snapshot(start, reference):
    pool = start(2).wait()
    epoch = pool.epoch
    pool.fleet.kill("shard-0")
    pool.wait(lambda pool: pool.epoch > epoch and pool.address())
    with lookups(pool.address(), reference, clients=1) as (wrong, done):
        progress(done)
    assert wrong == []


def test_a_lone_copy_is_read_from_another_generation_of_the_same_rows_after_its_own_was_deleted(
    start, reference, tiny_model, tmp_path
):
    first = Snapshot.open(shutil.copytree(tiny_model / "memory", tmp_path / "memory"))
    pool = start(2, uri=first.uri).wait()
    epoch, tables = pool.epoch, {spec: rows_of(first, spec) for spec in first.specs.values()}
    extend_snapshot(tmp_path / "memory", tables, full=True)
    assert "manifest.json" in prune(tmp_path / "memory", keep=1)
    pool.fleet.kill("shard-0")
    pool.wait(lambda pool: pool.epoch > epoch and pool.address())
    with lookups(pool.address(), reference, clients=1) as (wrong, done):
        progress(done)
    assert wrong == []


def test_a_shard_that_finds_no_room_is_done_without_until_it_does(start, reference):
    pool = start(3, 2).wait()
    with lookups(pool.address(), reference) as (wrong, done):
        pool.fleet.kill("shard-2", for_good=True)
        pool.wait(lambda pool: len(pool.describe().placement.shards) == 2)
        progress(done)
        pool.fleet.no_room.clear()
        pool.wait(lambda pool: len(pool.describe().placement.shards) == 3)
        progress(done)
    assert wrong == []


def test_growth_that_finds_no_room_leaves_the_pool_as_it_was(start, reference):
    pool = start(2).wait()
    pool.fleet.no_room.add("shard-3")
    with pytest.raises(ShardUnavailable, match=r"shard-3 did not start within 1.5 s: .* Add memory nodes"):
        pool.scale(shards=4)
    assert pool.scale(shards=2).moved == 0
    pool.wait(lambda pool: sorted(pool.fleet.servers) == ["shard-0", "shard-1"])
    with lookups(pool.address(), reference) as (wrong, done):
        progress(done)
    assert wrong == []


def test_numbers_out_of_range_are_refused_and_change_nothing(start):
    pool = start(2, 2).wait()
    with pytest.raises(ValueError, match="replicas: 2 copies of a block do not fit on 1 shards"):
        pool.scale(shards=1)
    with pytest.raises(ValueError, match="shards: 0 is too few"):
        pool.scale(shards=0)
    assert pool.describe().shape == Shape(2, 2)


@pytest.fixture
def stalled(monkeypatch):
    """Names of shards whose preparations do not end before the test does."""
    over, names, prepare = threading.Event(), {}, Shard.prepare

    def prepare_or_stall(shard, placement, *sources):
        if shard.name in names:
            names[shard.name].set()
            over.wait()
        return prepare(shard, placement, *sources)

    monkeypatch.setattr(Shard, "prepare", prepare_or_stall)
    yield names
    over.set()


def test_a_shard_that_dies_while_others_take_long_to_prepare_is_seen_and_healed(start, fleet, stalled, reference):
    pool = start(3, 2).wait()
    stalled["shard-3"] = preparing = threading.Event()
    scaling = threading.Thread(target=pool.scale, args=(4,))
    scaling.start()
    assert preparing.wait(30)
    stalled.clear()
    epoch, lives = pool.epoch, dict(fleet.servers)
    assert sorted(pool.describe().nodes) == [f"shard-{number}" for number in range(4)]
    fleet.kill("shard-1", for_good=True)
    assert sorted(pool.describe().nodes) == ["shard-0", "shard-2", "shard-3"]
    assert pool.address() in {lives[name].address for name in ("shard-0", "shard-2")}
    fleet.no_room.clear()
    scaling.join(60)  # the preparation that never ends is given up, and the next one has the new life of shard-1
    assert not scaling.is_alive()
    described = pool.describe()
    assert described.placement.epoch > epoch + 1
    assert len(described.placement.shards) == 4
    assert fleet.servers["shard-1"].address in {shard.address for shard in described.placement.shards}
    with lookups(pool.address(), reference) as (wrong, done):
        progress(done)
    assert wrong == []


def test_a_new_shard_that_hangs_is_restarted_and_then_filled(start, fleet, reference):
    pool = start(2).wait()
    located, silent = fleet.locate, socket.create_server(("127.0.0.1", 0))

    def hanging(shard):
        where = located(shard)
        if shard != "shard-2" or where is None or fleet.restarted:
            return where
        return replace(where, address=f"127.0.0.1:{silent.getsockname()[1]}")

    fleet.locate = hanging
    with silent:
        assert pool.scale(shards=3).shards == 3
    assert fleet.restarted == ["shard-2"]
    with lookups(pool.address(), reference) as (wrong, done):
        progress(done)
    assert wrong == []


def test_a_description_is_of_the_world_after_the_call(start, fleet):
    pool = start(3, 2, config=replace(QUICK, check_s=30.0))
    pool.wait(lambda pool: pool.describe().at_rest)
    fleet.kill("shard-1", for_good=True)
    assert sorted(pool.describe().nodes) == ["shard-0", "shard-2"]
    fleet.no_room.clear()
    assert sorted(pool.describe().nodes) == ["shard-0", "shard-1", "shard-2"]


def test_a_pool_that_finds_no_room_can_be_scaled_to_fewer_shards(start, fleet, reference):
    fleet.no_room.add("shard-3")
    pool = start(4)
    with pytest.raises(ShardUnavailable, match=r"shard-3 did not start .* or give fewer `shards`"):
        pool.wait()
    assert pool.scale(shards=3).shards == 3
    with lookups(pool.address(), reference) as (wrong, done):
        progress(done)
    assert wrong == []


def test_a_cluster_that_does_not_answer_for_a_moment_ends_one_call_and_no_more(start, fleet):
    pool = start(2).wait()
    running, fleet.running = fleet.running, broken
    with pytest.raises(ConnectionError, match="no cluster"):
        pool.describe()
    assert pool.address()
    fleet.running = running
    assert pool.scale(shards=3).shards == 3


def broken():
    raise ConnectionError("no cluster")


def test_an_error_in_starting_a_shard_is_raised_to_callers_until_it_passes(start, fleet):
    started = fleet.start
    fleet.start = lambda shard, node=None: broken()
    pool = start(2)
    with pytest.raises(ConnectionError, match="no cluster"):
        pool.wait()
    fleet.start = started
    pool.wait(lambda pool: pool.describe().at_rest)


def test_callers_of_a_pool_that_stops_are_not_left_waiting(start, fleet):
    pool = start(2).wait()
    fleet.no_room.add("shard-2")
    refused = []

    def scale():
        with pytest.raises(ShardUnavailable, match="is being stopped") as error:
            pool.scale(shards=3)
        refused.append(error)

    threads = [threading.Thread(target=scale) for _ in range(3)]
    for thread in threads:
        thread.start()
    pool.wait(lambda pool: pool.describe().shape.shards == 3)
    pool.shutdown()
    for thread in threads:
        thread.join()
    assert len(refused) == 3
    with pytest.raises(ShardUnavailable, match="is being stopped"):
        pool.describe()
    assert fleet.running() == []


def test_calls_at_the_same_time_are_taken_in_turn(start):
    pool = start(1).wait()
    reports = []
    threads = [threading.Thread(target=lambda n=n: reports.append(pool.scale(shards=n))) for n in (2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {report.shards for report in reports} == {2, 3, 4}
    assert len({report.epoch for report in reports}) == 3
    assert len(pool.describe().placement.shards) == reports[-1].shards


def test_a_new_life_of_the_pool_finds_shards_and_placement(start, reference):
    first = start(2, 2).wait()
    first.scale(shards=3)
    before = {name: server.incarnation for name, server in first.fleet.servers.items()}
    epoch = first.epoch
    with lookups(first.address(), reference) as (wrong, done):
        first.close()  # it dies, and its shards live on
        second = start(2, 1).wait()
        assert second.describe().shape == Shape(3, 2)
        second.wait(lambda pool: pool.epoch > epoch)
        progress(done)
    assert wrong == []
    assert {name: server.incarnation for name, server in second.fleet.servers.items()} == before


def test_the_load_decides_on_the_number_of_shards(start, reference):
    scaling = AutoscaleConfig(1, 3, calm_s=1.0, rest_s=0.1, shard_bytes_per_s=1e3)
    pool = start(1, config=replace(QUICK, autoscale=scaling, load_s=0.2)).wait()
    with lookups(pool.address(), reference) as (wrong, done):
        pool.wait(lambda pool: len(pool.describe().placement.shards) == 3)
        progress(done)
    pool.wait(lambda pool: len(pool.describe().placement.shards) == 1)
    assert wrong == []


def test_shards_move_to_a_node_that_joins_and_are_there_before_they_leave(start, fleet, reference):
    fleet.node = "left"
    pool = start(4, 2)
    pool.wait(lambda pool: pool.describe().at_rest)
    with lookups(pool.address(), reference) as (wrong, done):
        pool.fleet.with_room = {"joined"}
        assert not pool.describe().at_rest
        pool.wait(lambda pool: pool.describe().at_rest)
        progress(done)
    assert wrong == []
    described = pool.describe()
    assert described.nodes == {"shard-0": "left", "shard-1": "left", "shard-2.1": "joined", "shard-3.1": "joined"}
    assert sorted(pool.fleet.servers) == sorted(described.nodes)
    held = [described.placement.held(table, ["shard-0", "shard-1"]) for table in described.placement.tables]
    assert all((on_left.sum(axis=1) == 1).all() for on_left in held)


def test_a_node_that_has_no_room_after_all_leaves_the_pool_as_it_was(start, fleet, reference):
    fleet.node, fleet.no_room = "left", {"shard-1.1"}
    pool = start(2, 2)
    pool.wait(lambda pool: pool.describe().at_rest)
    with lookups(pool.address(), reference) as (wrong, done):
        pool.fleet.with_room = {"full"}
        pool.wait(lambda pool: pool.describe().shape.moved == {1: 1})
        pool.wait(lambda pool: not pool.describe().shape.moved)
        progress(done)
    assert wrong == []
    assert sorted(pool.describe().nodes) == ["shard-0", "shard-1"]


def test_damage_of_the_snapshot_is_raised_to_callers(start, tiny_model, tmp_path):
    shutil.copytree(tiny_model / "memory", tmp_path / "memory")
    victim = next((tmp_path / "memory").rglob("*.arrow"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    pool = start(1, uri=tmp_path / "memory")
    with pytest.raises(SnapshotError, match="shard-0"):
        pool.wait()
