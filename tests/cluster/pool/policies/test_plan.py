"""Which placement a pool goes to next, with shards that are only names."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.pool.policies.plan import PoolPlan, Shape, Whereabouts
from cluster.pool.report import ScaleReport
from memory_service import Snapshot
from memory_service.placement.assignment import UNASSIGNED


@pytest.fixture(scope="module")
def specs(tiny_model):
    return tuple(Snapshot.open(tiny_model / "memory").specs.values())


def seen(*lives):
    """Shards by number, each in its n-th life; 0 for a shard that does not answer."""
    shards = enumerate(lives)
    return [Whereabouts(f"shard-{i}", f"host:{i}{life}", f"life {life}") for i, life in shards if life]


@pytest.fixture
def plan(specs):
    """A plan whose three shards serve."""
    return step(PoolPlan(specs, Shape(3)), seen(1, 1, 1))


def step(plan, up, given_up=()):
    """The plan once its next placement, if there is one, is served."""
    plan = plan.advanced(up, given_up)
    return plan.activated() if plan.target else plan


def resized(plan, shape):
    return replace(plan, wanted=shape)


def names(plan):
    """The shards that serve."""
    return [shard.shard for shard in plan.placement.shards]


def test_the_first_placement_waits_for_every_shard(specs):
    plan = PoolPlan(specs, Shape(3))
    assert plan.advanced(seen(1, 0, 1), ["shard-1"]) is plan
    plan = plan.advanced(seen(1, 1, 1))
    assert not plan.is_reached()
    plan = plan.activated()
    assert plan.is_reached()
    assert (plan.placement.epoch, names(plan)) == (1, ["shard-0", "shard-1", "shard-2"])
    assert set(plan.placement.tables) == {"engram.0", "engram.2"}


def test_nothing_changes_while_every_shard_stays_alive(plan):
    assert plan.advanced(seen(1, 1, 1)) is plan
    assert plan.advanced(list(reversed(seen(1, 1, 1)))) is plan


def test_a_shard_that_came_back_gets_a_new_epoch_and_keeps_its_blocks(plan):
    first, second = plan.placement, step(plan, seen(1, 2, 1)).placement
    assert (second.epoch, second.shards[1].address) == (2, "host:12")
    for table in first.tables:
        assert (first.tables[table] == second.tables[table]).all()


def test_a_shard_that_came_back_on_another_node_has_no_block_that_this_node_has(specs):
    def shared(placement, *shards):
        held = [placement.held(table, shards).all(axis=1).sum() for table in placement.tables]
        return sum(held)

    lives = [replace(one, node=node) for one, node in zip(seen(1, 1, 1, 1, 1), "aabbc", strict=True)]
    plan = step(PoolPlan(specs, Shape(5, replicas=2)), lives)
    first = plan.placement
    assert shared(first, "shard-0", "shard-1") == shared(first, "shard-2", "shard-3") == 0
    assert shared(first, "shard-1", "shard-4") > 0
    lives[1] = replace(lives[1], incarnation="life 2", node="c")
    second = step(plan, lives).placement
    assert shared(second, "shard-1", "shard-4") == shared(second, "shard-2", "shard-3") == 0
    assert second.moves_from(first) <= 2 * shared(first, "shard-1", "shard-4")


def test_a_shard_that_is_away_is_waited_for_and_then_left_out_until_it_is_back(plan):
    assert plan.advanced(seen(1, 0, 1)) is plan
    plan = step(plan, seen(1, 0, 1), ["shard-1"])
    assert names(plan) == ["shard-0", "shard-2"]
    assert plan.is_reached(["shard-1"])
    assert plan.advanced(seen(1, 0, 1), ["shard-1"]) is plan
    assert names(step(plan, seen(1, 2, 1))) == ["shard-0", "shard-1", "shard-2"]


def test_an_attempt_that_failed_is_made_again_under_another_epoch(plan):
    plan = plan.advanced(seen(1, 2, 1))
    assert plan.target.placement.epoch == 2
    plan = plan.failed()
    assert not plan.is_reached()
    assert plan.advanced(seen(1, 1, 1)).target.placement.epoch == 3  # even if the shard was not gone after all


def test_growing_waits_for_new_shards_but_healing_does_not_wait_for_growth(plan):
    plan = resized(plan, Shape(5))
    assert plan.advanced(seen(1, 1, 1, 1), ["shard-4"]) is plan
    assert plan.unplaced(["shard-0", "shard-4"]) == ["shard-4"]
    plan = step(plan, seen(2, 1, 1, 1))
    assert names(plan) == ["shard-0", "shard-1", "shard-2", "shard-3"]
    assert not plan.is_reached()
    plan = step(plan, seen(2, 1, 1, 1, 1))
    assert len(names(plan)) == 5
    assert plan.is_reached()


def test_growing_and_shrinking_move_little_more_than_they_must(plan):
    for shards, least in ((5, 0.4), (3, 0.4), (2, 1 / 3)):
        old, plan = plan.placement, step(resized(plan, Shape(shards)), seen(*[1] * shards))
        report = ScaleReport.of(old, plan.placement, 1.5)
        assert report.moved <= 1.2 * report.ideal
        assert report.ideal / report.blocks == pytest.approx(least, abs=0.06)
    assert f"2 shards, 1 replica, epoch 4: moved {report.moved:,} of" in report.to_text()


def test_a_shard_stays_until_its_successor_serves_also_while_another_one_heals(specs):
    plan = step(PoolPlan(specs, Shape(2, replicas=2)), seen(1, 1))
    shape, successor = plan.wanted.succeeded("shard-1")
    assert (successor, shape.names) == ("shard-1.1", ["shard-0", "shard-1.1"])
    plan = resized(plan, shape)
    assert plan.advanced(seen(1, 1)) is plan
    plan = step(plan, seen(2, 1))
    assert names(plan) == ["shard-0", "shard-1"]
    assert not plan.is_reached()
    there = Whereabouts(successor, "host:1.1", "life 1")
    plan = step(plan, [*seen(2, 1), there])
    assert names(plan) == ["shard-0", "shard-1.1"]
    assert plan.is_whole([*seen(2), there])
    assert not plan.is_whole(seen(2))
    assert shape.succeeded(successor)[1] == "shard-1.2"


def test_a_layout_that_still_has_a_leaving_shard_has_not_the_wanted_shape(plan):
    plan = step(plan, seen(1, 0, 1), ["shard-1"])
    plan = step(resized(plan, Shape(2)), seen(2, 0, 1))  # shard-1 may be back any moment, shard-0 cannot wait for it
    assert names(plan) == ["shard-0", "shard-2"]
    assert not plan.is_reached(["shard-1"])
    plan = step(plan, seen(2, 0, 1), ["shard-1"])
    assert names(plan) == ["shard-0"]
    assert plan.is_reached(["shard-1"])


def test_leaving_shards_are_watched_until_the_others_serve(plan):
    plan = resized(plan, Shape(2))
    assert plan.names == ["shard-0", "shard-1", "shard-2"]
    assert step(plan, seen(1, 1, 1)).names == ["shard-0", "shard-1"]


def test_shards_that_prepare_are_watched_also_when_they_are_not_wanted_any_more(plan):
    preparing = resized(plan, Shape(4)).advanced(seen(1, 1, 1, 1))
    assert resized(preparing, Shape(3)).names == ["shard-0", "shard-1", "shard-2", "shard-3"]
    assert resized(preparing.failed(), Shape(3)).names == ["shard-0", "shard-1", "shard-2"]


def test_every_block_must_be_on_a_shard_that_answers(specs):
    plan = PoolPlan(specs, Shape(3, replicas=2))
    assert plan.serving(seen(1, 1, 1)) == []
    plan = step(plan, seen(1, 1, 1))
    assert len(plan.serving(seen(1, 1, 1))) == 3
    assert {address.shard for address in plan.serving(seen(1, 2, 1))} == {"shard-0", "shard-2"}  # a new life is empty
    assert plan.serving(seen(1, 0, 0)) == []


def test_replicas_by_table_and_of_hot_blocks(specs):
    plan = step(PoolPlan(specs, Shape(3, {"engram.0": 2}, {"engram.2": {5: 2, 6: 9}})), seen(1, 1, 1))
    copies = {table: (assigned != UNASSIGNED).sum(axis=0) for table, assigned in plan.placement.tables.items()}
    assert (copies["engram.0"] == 2).all()
    assert copies["engram.2"][[4, 5, 6, 7]].tolist() == [1, 3, 3, 1]
    assert plan.wanted.bytes_of(specs) == sum(s.rows * s.row_bytes * n for s, n in zip(specs, (2, 1), strict=True))


def test_fewer_shards_than_replicas_are_better_than_none(specs):
    plan = step(PoolPlan(specs, Shape(2, replicas=2)), seen(1, 1))
    plan = step(plan, seen(1, 0), ["shard-1"])
    assert len(plan.placement.tables["engram.0"]) == 1
    assert len(step(plan, seen(1, 2)).placement.tables["engram.0"]) == 2


def test_a_placement_of_an_earlier_life_is_built_upon(plan, specs):
    again = PoolPlan(specs, Shape(3)).adopting(plan.placement, seen(1, 1, 0))
    assert again.serving(seen(1, 1, 0)) == []
    following = step(again, seen(1, 1, 2)).placement
    assert following.epoch == plan.placement.epoch + 1
    assert following.moves_from(plan.placement) == 0


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((0,), "shards: 0 is too few; give at least 1"),
        (("4",), "shards: '4' is not a whole number"),
        ((2.5,), "shards: 2.5 is not a whole number"),
        ((2, 3), "replicas: 3 copies of a block do not fit on 2 shards; give 1 to 2, or more `shards`"),
        ((2, 0), "replicas: 0 copies"),
        ((2, {"engram.0": 3}), "replicas: 3 copies"),
        ((2, {"engram.0": None}), "replicas: None is not a whole number"),
    ],
)
def test_a_shape_with_numbers_out_of_range_is_refused(shape, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Shape(*shape)


def test_replicas_of_a_table_that_does_not_exist_are_refused(specs):
    with pytest.raises(
        ValueError, match=r"^replicas: there is no table 'engram\.7'; the tables are engram\.0, engram\.2"
    ):
        PoolPlan(specs, Shape(2, {"engram.7": 2}))
