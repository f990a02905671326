"""Health checks of shards that answer, that are gone, and that hang."""

from __future__ import annotations

import socket

import pytest

from cluster.pool.policies.plan import Whereabouts
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
    watch = ShardWatch(fleet, probe_s=0.3, clock=clock)
    yield watch
    watch.close()


def up(sighting):
    return sorted(where.shard for where in sighting.up)


def test_shards_that_answer_are_up_with_their_counters(watch):
    seen = watch.look(SHARDS)
    assert up(seen) == SHARDS
    assert {stats.requests for stats in seen.up.values()} == {0}
    assert up(watch.look(["shard-1"])) == ["shard-1"]


def test_a_shard_that_is_gone_is_missing_until_its_next_life(watch, fleet, clock):
    first = watch.look(SHARDS)
    fleet.kill("shard-1", for_good=True)
    watch.look(SHARDS)
    clock.now += 7
    seen = watch.look(SHARDS)
    assert (up(seen), seen.missing(6), seen.missing(8)) == (["shard-0"], ["shard-1"], [])
    assert seen.silent(0) == []
    fleet.no_room.clear()
    seen = watch.look(SHARDS)
    assert (up(seen), seen.missing(0)) == (SHARDS, [])
    assert len(first.up.keys() & seen.up.keys()) == 1


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


def test_a_shard_that_hangs_is_silent_until_it_is_forgotten_and_located_anew(watch, hanging, clock):
    for _ in range(2):
        seen = watch.look(SHARDS)
        clock.now += 2
    assert (up(seen), seen.missing(0)) == (["shard-0"], ["shard-1"])
    seen = watch.look(SHARDS)
    assert (seen.silent(4), seen.silent(5)) == (["shard-1"], [])
    hanging.no_room.clear()
    hanging.restart("shard-1")
    watch.forget("shard-1")
    seen = watch.look(SHARDS)
    assert (up(seen), seen.silent(0)) == (SHARDS, [])


def test_a_shard_that_cannot_start_does_not_hide_the_others(watch, fleet):
    def locate(shard):
        if shard == "shard-0":
            raise ValueError("its certificate is gone")
        return located(shard)

    located, fleet.locate = fleet.locate, locate
    seen = watch.look(SHARDS)
    assert (up(seen), list(map(str, seen.failures))) == (["shard-1"], ["its certificate is gone"])


def test_another_process_on_the_port_of_a_shard_is_not_taken_for_it(watch, fleet):
    located = fleet.locate("shard-0")
    fleet.locate = lambda shard: Whereabouts(shard, located.address, "an earlier life")
    assert up(watch.look(SHARDS)) == []


def test_counters_of_blocks_are_read_on_request(watch, fleet):
    load = fleet.servers["shard-0"].shard.block_load
    load.read = lambda: {"engram.1": {3: 5}}
    assert [stats.block_rows for stats in watch.look(["shard-0"]).up.values()] == [{}]
    assert [stats.block_rows for stats in watch.look(["shard-0"], blocks=True).up.values()] == [{"engram.1": {3: 5}}]
