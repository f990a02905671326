import pytest

from cluster.pool import PoolState
from cluster.shard_actor import Whereabouts
from memory_service import Snapshot

NAMES = ["shard-0", "shard-1", "shard-2"]


def seen(*incarnations):
    return [Whereabouts(name, f"host:{inc}", f"life-{inc}") for name, inc in zip(NAMES, incarnations, strict=True)]


@pytest.fixture
def state(tiny_model):
    return PoolState(NAMES, Snapshot.open(tiny_model / "memory").specs.values())


def observe(state, where):
    placement = state.next_placement(where)
    if placement is not None:
        state.activated(where)
    return placement


def test_the_first_placement_names_every_shard_and_places_every_table(state):
    placement = observe(state, seen(1, 2, 3))
    assert placement.epoch == 1
    assert [(one.shard, one.address) for one in placement.shards] == [
        ("shard-0", "host:1"),
        ("shard-1", "host:2"),
        ("shard-2", "host:3"),
    ]
    assert set(placement.tables) == {"engram.0", "engram.2"}


def test_nothing_changes_while_every_shard_stays_alive(state):
    observe(state, seen(1, 2, 3))
    assert observe(state, seen(1, 2, 3)) is None
    assert observe(state, list(reversed(seen(1, 2, 3)))) is None


def test_a_shard_that_came_back_gets_a_new_epoch_and_keeps_its_blocks(state):
    first = observe(state, seen(1, 2, 3))
    second = observe(state, seen(1, 9, 3))
    assert (second.epoch, second.shards[1].address) == (2, "host:9")
    for table in first.tables:
        assert (first.tables[table] == second.tables[table]).all()


def test_a_shard_that_came_back_on_its_old_port_is_noticed(state):
    observe(state, seen(1, 2, 3))
    again = [*seen(1, 2, 3)[:2], Whereabouts("shard-2", "host:3", "another life")]
    assert observe(state, again).epoch == 2


def test_an_activation_that_failed_is_tried_again_under_another_epoch(state):
    first = state.next_placement(seen(1, 2, 3))
    again = state.next_placement(seen(1, 2, 3))
    assert (first.epoch, again.epoch) == (1, 2)
