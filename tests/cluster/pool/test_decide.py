"""What a pool decides to do, observation by observation, in a world of plain data."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.pool.decide import decide, problem
from cluster.pool.policies.autoscale import AutoscaleConfig, Autoscaler, Tuner
from cluster.pool.policies.plan import Goal, Shape
from cluster.pool.state import (
    AbandonReshape,
    Conclude,
    Reshape,
    RestartShard,
    Retire,
    SaveGoal,
    ScaleRequest,
    StartShard,
    StopShard,
)
from memory_service import MemoryServiceError, ShardUnavailable, SnapshotError
from memory_service.metrics.metrics import Distribution
from memory_service.protocol.reports import ShardStats
from tests.cluster.pool.world import CONFIG, SPEC, World


@pytest.fixture
def world():
    """Three shards on three nodes, each block on two of them, at rest."""
    world = World.of(3, 2).rest()
    assert world.at_rest
    return world


def kinds(world):
    """What the pool did in its last round."""
    return [type(action) for action in world.actions]


def look_until(world, kind, rounds=30):
    """Let time pass until the pool does this; the action, and how many rounds it took."""
    for count in range(1, rounds + 1):
        world.look()
        for action in world.actions:
            if isinstance(action, kind):
                return action, count
    raise AssertionError(f"no {kind.__name__} within {rounds} rounds")


def test_a_new_pool_starts_its_shards_fills_them_and_retires_nothing_before_the_grace_is_over():
    world = World.of(2).look()
    assert world.actions == (SaveGoal(Goal(Shape(2))), StartShard("shard-0"), StartShard("shard-1"))
    reshape, _ = look_until(world, Reshape)
    assert (reshape.current, reshape.target.epoch, reshape.retire) == (None, 1, False)
    assert world.serving == []
    world.finish()
    _, rounds = look_until(world, Retire)
    assert rounds == 1 + CONFIG.grace_s
    assert world.serving == ["shard-0", "shard-1"]
    assert not world.at_rest
    world.finish()
    assert world.look().at_rest


def test_a_quiet_world_calls_for_nothing(world):
    for _ in range(20):
        assert world.look().actions == ()


def test_a_restarted_shard_is_placed_again_and_remembers_the_goal(world):
    world.kill("shard-1")
    world.look()
    assert kinds(world) == [SaveGoal, Reshape]
    assert world.state.plan.target.placement.shards[1].address == world.running["shard-1"].address


def test_a_shard_that_dies_while_it_prepares_ends_the_reshape_and_is_in_the_next_one(world):
    world.scale(shards=4)
    first, _ = look_until(world, Reshape)
    world.kill("shard-3")
    world.look()
    assert AbandonReshape in kinds(world)
    second, _ = look_until(world, Reshape)
    assert second.target.epoch == first.target.epoch + 1
    assert second.target.shards[3].address == world.running["shard-3"].address
    world.rest()
    assert world.answers[0].shards == 4


def test_a_reshape_under_way_is_left_alone_while_its_shards_live(world):
    world.scale(shards=4)
    look_until(world, Reshape)
    world.hang("shard-0")  # for less than it takes to be given up
    for _ in range(2):
        assert kinds(world.look()) in ([], [SaveGoal])


def test_a_shard_that_stays_away_ends_the_reshape_that_it_is_part_of(world):
    world.scale(shards=4)
    look_until(world, Reshape)
    world.evict("shard-1")
    _, rounds = look_until(world, AbandonReshape)
    assert rounds == 1 + CONFIG.give_up_s


def test_a_shard_that_hangs_is_restarted_also_while_a_reshape_is_under_way(world):
    world.scale(shards=4)
    look_until(world, Reshape)
    world.hang("shard-0")
    restart, rounds = look_until(world, RestartShard)
    assert (restart.shard, rounds) == ("shard-0", CONFIG.unresponsive_s)


def test_a_shard_that_is_missing_is_started_also_while_a_reshape_is_under_way(world):
    world.scale(shards=4)
    look_until(world, Reshape)
    del world.running["shard-0"]  # its process was ended for good, from outside
    assert StartShard("shard-0") in world.look().actions


def test_attempts_that_fail_are_repeated_after_pauses_that_grow(world):
    world.kill("shard-1")
    pauses = []
    for _ in range(6):
        reshape, rounds = look_until(world, Reshape)
        pauses.append(rounds)
        world.finish(ShardUnavailable("not yet"))
    assert pauses == [1, 3, 5, 9, 16, 16]
    assert reshape.target.epoch == 7
    assert problem(world.state, world.seen, CONFIG) is None  # it may pass


def test_a_request_is_attempted_at_once_however_long_the_pause_has_grown():
    world = World.of(3)
    for _ in range(4):
        look_until(world, Reshape)
        world.finish(SnapshotError("damaged"))
    world.look()
    world.scale(shards=2)
    assert Reshape in kinds(world.look())


def test_leaving_shards_serve_on_until_clients_know_the_new_placement(world):
    world.scale(shards=2)
    look_until(world, Reshape)
    world.finish()
    done = []
    for _ in range(int(CONFIG.grace_s) + 3):
        world.look()
        done += world.actions
        if isinstance(world.work, Retire):
            world.finish()
    assert [type(action) for action in done if not isinstance(action, SaveGoal)] == [Retire, StopShard, Conclude]
    assert StopShard("shard-2") in done


def test_a_placement_is_retired_first_when_the_next_one_follows_within_the_grace(world):
    world.kill("shard-0")
    look_until(world, Reshape)
    world.finish()
    world.kill("shard-1")
    reshape, _ = look_until(world, Reshape)
    assert reshape.retire
    world.finish()
    _, rounds = look_until(world, Retire)
    assert rounds == 1 + CONFIG.grace_s


def test_requests_are_served_in_turn_each_from_a_settled_pool(world):
    for shards in (5, 2, 4):
        world.scale(shards)
    wanted = []
    for _ in range(60):
        world.finish()
        world.look()
        wanted.append(world.state.plan.wanted.shards)
    assert [now for now, before in zip(wanted, [3, *wanted], strict=False) if now != before] == [5, 2, 4]
    assert [report.shards for report in world.answers.values()] == [5, 2, 4]
    assert list(world.answers) == [0, 1, 2]


def test_a_request_waits_while_the_pool_heals(world):
    world.kill("shard-1")
    look_until(world, Reshape)
    world.scale(shards=4)
    assert world.look().state.plan.wanted == Shape(3, 2)
    world.rest()
    assert world.answers[0].shards == 4


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"shards": 0}, "shards: 0 is too few"),
        ({"shards": 1}, "replicas: 2 copies of a block do not fit on 1 shards"),
        ({"shards": "4"}, "shards: '4' is not a whole number"),
        ({"replicas": {"engram.9": 1}}, "replicas: there is no table 'engram.9'"),
    ],
)
def test_numbers_out_of_range_are_refused_also_while_the_pool_heals(world, numbers, message):
    world.kill("shard-1")
    look_until(world, Reshape)
    world.scale(**numbers)
    with pytest.raises(ValueError, match=message):
        raise world.look().answers[0]
    assert world.state.plan.wanted == Shape(3, 2)


def test_growth_that_finds_no_room_goes_back_and_leaves_nothing_behind(world):
    world.scale(shards=5)
    world.look()
    world.evict("shard-4")
    conclude, _ = look_until(world, Conclude)
    assert isinstance(conclude.result, ShardUnavailable)
    assert "shard-4 did not start within 8 s" in str(conclude.result)
    assert world.rest().at_rest
    assert (world.state.plan.wanted, world.state.plan.epoch) == (Shape(3, 2), 1)


def test_damage_ends_a_change_of_shape_and_what_may_pass_does_not(world):
    world.scale(shards=4)
    for error in (ShardUnavailable("dead"), MemoryServiceError("broken")):
        look_until(world, Reshape)
        assert world.answers == {}
        world.finish(error)
        world.look()
    assert world.answers[0] is error
    assert world.state.plan.wanted == Shape(3, 2)
    assert world.rest().at_rest


def test_a_pool_that_cannot_start_takes_the_request_that_may_be_the_cure():
    world = World.of(5)
    world.look()
    world.evict("shard-3")
    world.evict("shard-4")
    world.look(10)
    assert "shard-3 did not start" in str(problem(world.state, world.seen, CONFIG))
    world.scale(shards=4)
    world.rest(30)
    assert isinstance(world.answers[0], ShardUnavailable)  # shard-3 has no room either
    world.scale(shards=3)
    assert world.rest().at_rest
    assert (world.answers[1].shards, world.answers[1].moved) == (3, world.answers[1].blocks)


def test_damage_is_a_problem_until_a_reshape_succeeds():
    world = World.of(2)
    look_until(world, Reshape)
    world.finish(SnapshotError("damaged"))
    world.look()
    assert isinstance(problem(world.state, world.seen, CONFIG), SnapshotError)
    look_until(world, Reshape)
    assert isinstance(problem(world.state, world.seen, CONFIG), SnapshotError)
    world.finish()
    world.look()
    assert problem(world.state, world.seen, CONFIG) is None


def test_a_restarted_pool_goes_on_with_a_change_and_answers_repeated_requests(world):
    world.scale(shards=5)
    look_until(world, Reshape)
    world.restart_pool()
    assert world.state.plan.wanted == Shape(5, 2)
    assert world.rest().answers[0].shards == 5


def test_a_restarted_pool_goes_back_from_a_change_that_finds_no_room(world):
    world.add_node("d")
    world.add_node("e")
    world.scale(shards=4)
    world.look(2)
    world.evict("shard-3")
    world.asked = ()  # the caller has left
    world.restart_pool()
    assert world.state.plan.wanted == Shape(4, 2)
    assert world.rest().at_rest
    assert world.state.plan.wanted == Shape(3, 2)


def test_a_restarted_pool_serves_at_once_what_its_shards_serve(world):
    world.kill("shard-2")
    look_until(world, Reshape)
    world.finish(ShardUnavailable("one is gone"), activated={"shard-0"})
    world.restart_pool()
    world.look()
    assert (world.state.plan.placement.epoch, world.serving) == (2, ["shard-0", "shard-1", "shard-2"])
    assert world.state.plan.target.placement.epoch == 3
    assert world.rest().at_rest


def test_a_lost_node_is_healed_and_a_new_one_gets_its_share_one_shard_at_a_time(world):
    world.lose_node("c")
    assert world.rest().at_rest
    world.add_node("d")
    start, _ = look_until(world, StartShard)
    assert (start.shard, start.node) == ("shard-2.1", "d")
    assert world.rest().at_rest
    assert sorted(where.node for where in world.running.values()) == ["a", "b", "d"]


def test_no_shard_moves_while_another_one_is_away(world):
    world.lose_node("c")
    world.rest()
    world.evict("shard-1")
    world.rest(20)
    world.add_node("d")
    world.rest(20)
    assert world.state.plan.wanted == Shape(3, 2)
    world.make_room()
    assert world.rest().at_rest
    assert world.state.plan.wanted.moved == {2: 1}


def test_requests_come_before_the_spreading_of_shards(world):
    world.lose_node("c")
    world.rest()
    world.add_node("d")
    world.scale(shards=4)
    world.look()
    assert world.state.plan.wanted == Shape(4, 2)


def test_the_load_changes_the_shape_of_a_settled_pool_and_of_no_other(world):
    tuner = Tuner((SPEC,), Autoscaler(AutoscaleConfig(1, 8), 0))
    state = replace(world.state, tuner=tuner)
    world.look()
    for number, now in enumerate((world.now, world.now + 10)):
        stats = ShardStats(stages={"gather": Distribution((), (), 9.0 * number)})
        seen = replace(world.seen, now=now, up=dict.fromkeys(world.seen.up, stats), counts_blocks=True)
        before, (state, _) = state, decide(state, seen, CONFIG)
    assert state.plan.wanted == Shape(5, 2)
    busy = replace(before, requests=(ScaleRequest(0, shards=2),))
    assert decide(busy, seen, CONFIG)[0].plan.wanted == Shape(2, 2)
    assert decide(before, replace(seen, counts_blocks=False), CONFIG)[0].plan.wanted == Shape(3, 2)


def test_at_rest_means_that_no_shard_has_to_move_either(world):
    assert world.look().at_rest
    world.lose_node("c")
    assert world.rest().at_rest
    world.add_node("d")
    assert not world.look().at_rest
