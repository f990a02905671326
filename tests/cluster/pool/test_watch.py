"""What a watch makes of shards that answer, that are gone, and that hang."""

from __future__ import annotations

import socket

import pytest

from cluster.pool.plan import Whereabouts
from cluster.pool.watch import ShardWatch
from tests.cluster.pool.in_process import InProcessFleet

SHARDS = ["shard-0", "shard-1"]


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def fleet():
    fleet = InProcessFleet()
    for shard in SHARDS:
        fleet.start(shard)
    yield fleet
    fleet.close()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watch(fleet, clock):
    watch = ShardWatch(fleet, probe_s=0.3, unresponsive_s=5.0, clock=clock)
    yield watch
    watch.close()


def up(watch):
    return sorted(where.shard for where in watch.up)


def test_shards_that_answer_are_up_with_their_counters(watch):
    watch.look(SHARDS)
    assert up(watch) == SHARDS
    assert {stats.requests for stats in watch.up.values()} == {0}
    watch.look(["shard-1"])
    assert up(watch) == ["shard-1"]


def test_a_shard_that_is_gone_is_missing_until_its_next_life(watch, fleet, clock):
    watch.look(SHARDS)
    first = dict.fromkeys(watch.up)
    fleet.kill("shard-1", for_good=True)
    watch.look(SHARDS)
    clock.now += 7
    watch.look(SHARDS)
    assert (up(watch), watch.missing(6), watch.missing(8)) == (["shard-0"], ["shard-1"], [])
    fleet.no_room.clear()
    fleet.start("shard-1")
    watch.look(SHARDS)
    assert (up(watch), watch.missing(0)) == (SHARDS, [])
    assert len(first.keys() & watch.up.keys()) == 1
    assert fleet.restarted == []


@pytest.fixture
def hanging(fleet):
    """shard-1 takes connections and never answers, as a stopped process does."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        fleet.kill("shard-1", for_good=True)
        port = silent.getsockname()[1]
        located = fleet.locate
        fleet.locate = lambda shard: (
            located(shard) if shard in fleet.servers else Whereabouts(shard, f"127.0.0.1:{port}", "x")
        )
        yield fleet


def test_a_shard_that_hangs_is_restarted_once_its_time_is_up(watch, hanging, clock):
    for _ in range(2):
        watch.look(SHARDS)
        clock.now += 2
    assert (up(watch), hanging.restarted) == (["shard-0"], [])
    clock.now += 2
    hanging.no_room.clear()
    watch.look(SHARDS)
    assert hanging.restarted == ["shard-1"]
    watch.look(SHARDS)
    assert up(watch) == SHARDS


def test_a_shard_that_cannot_start_keeps_nobody_from_seeing_the_others(watch, fleet):
    def locate(shard):
        if shard == "shard-0":
            raise ValueError("its certificate is gone")
        return located(shard)

    located, fleet.locate = fleet.locate, locate
    with pytest.raises(ValueError, match="its certificate is gone"):
        watch.look(SHARDS)
    assert up(watch) == ["shard-1"]


def test_another_process_on_the_port_of_a_shard_is_not_taken_for_it(watch, fleet):
    located = fleet.locate("shard-0")
    fleet.locate = lambda shard: Whereabouts(shard, located.address, "an earlier life")
    watch.look(SHARDS)
    assert up(watch) == []
