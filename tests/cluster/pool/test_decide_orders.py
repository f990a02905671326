"""Every short order of events, and some long ones: a pool keeps its promises after each, and comes to rest in the end.

The promises that hold after every round are asserted by the world itself.
"""

from __future__ import annotations

import random

import pytest

from memory_service import ShardUnavailable, SnapshotError
from tests.cluster.pool.world import World

EVENTS = {
    "shard-0 dies": lambda world: world.kill("shard-0"),
    "shard-2 dies": lambda world: world.kill("shard-2"),
    "shard-1 finds no room": lambda world: world.evict("shard-1"),
    "the last shard finds no room": lambda world: world.evict(max(world.running, default="none")),
    "shard-0 hangs": lambda world: world.hang("shard-0"),
    "the last shard hangs": lambda world: world.hang(max(world.running, default="none")),
    "there is room again": lambda world: world.make_room(),
    "a node is lost": lambda world: world.lose_node("a") if len(world.homes) > 1 else None,
    "a node joins": lambda world: world.add_node("d") if "d" not in world.homes else None,
    "growth is requested": lambda world: world.scale(shards=5),
    "a smaller pool is requested": lambda world: world.scale(shards=2),
    "fewer replicas are requested": lambda world: world.scale(replicas=1),
    "what is under way ends": lambda world: world.finish(),
    "what is under way fails halfway": lambda world: world.finish(ShardUnavailable("gone"), {"shard-0"}),
    "the snapshot turns out damaged": lambda world: world.finish(SnapshotError("damaged")),
    "the pool is restarted": lambda world: world.restart_pool(),
    "time passes": lambda world: world.look(9),
}


def new():
    return World.of(3, 2)


def preparing():
    return World.of(3, 2).look(2)


def at_rest():
    return World.of(3, 2).rest()


def growing():
    world = at_rest()
    world.scale(shards=4)
    return world.look(2)


def spreading():
    world = at_rest()
    world.lose_node("c")
    world.rest()
    world.add_node("e")
    return world.look(3)


def healing():
    world = at_rest()
    world.kill("shard-1")
    return world.look()


STARTS = [new, preparing, at_rest, growing, spreading, healing]


def happen(world, *names):
    world = world.copy()
    for name in names:
        EVENTS[name](world)
        world.look()
    return world


def check_that_it_comes_to_rest(world):
    """First without room for what found none, then with it."""
    world = world.copy().rest(40)
    assert world.state.change is None
    assert set(world.answers) == {request.number for request in world.asked}
    world.make_room()
    assert world.rest(40).at_rest


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("first", EVENTS)
def test_after_any_two_events_a_quiet_pool_comes_to_rest(start, first):
    after_first = happen(start(), first)
    for second in EVENTS:
        check_that_it_comes_to_rest(happen(after_first, second))


@pytest.mark.parametrize("seed", range(40))
def test_after_a_long_row_of_events_a_quiet_pool_comes_to_rest(seed):
    chance = random.Random(seed)
    world = new()
    for _ in range(15):
        EVENTS[chance.choice(list(EVENTS))](world)
        world.look(chance.choice([1, 1, 2, 4]))
    check_that_it_comes_to_rest(world)
