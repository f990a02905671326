"""The autoscaler on loads that are made up, and from counters of shards to load, size and replicas of hot blocks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cluster.pool.policies.autoscale import AutoscaleConfig, Autoscaler, PoolLoad, Reading, Tuner
from cluster.pool.policies.plan import Shape, Whereabouts
from memory_service import Placement, RowFormat, ShardAddress, TableSpec
from memory_service.metrics.metrics import Distribution
from memory_service.protocol.reports import ShardStats

DAY = 24 * 3600
STEP = 5.0
CONFIG = AutoscaleConfig(min_shards=2, max_shards=12)
SPEC = TableSpec(
    name="engram.1",
    layer=1,
    column_rows=(4000, 4000),
    max_ngram=3,
    heads=1,
    multipliers=(7, 11, 13),
    pad_id=2,
    token_map_sha256="ab" * 32,
    dim=8,
    row_format=RowFormat.BF16,
    block_rows=64,
)
SHAPE = Shape(2)
PLACEMENT = Placement.build(1, [ShardAddress(name, "") for name in SHAPE.names], [SPEC])


def even(utilisation, shards):
    return PoolLoad((utilisation,) * shards, (0.0,) * shards)


def simulate(demand, config=CONFIG, table_bytes=0):
    """Sizes over time, and utilisation, of a pool whose load at each step is `demand` fully busy shards."""
    scaler, shards, sizes, used = Autoscaler(config, table_bytes), config.min_shards, [], []
    for number, work in enumerate(demand):
        used.append(work / shards)
        scaler, shards = scaler.decide(number * STEP, shards, even(used[-1], shards))
        sizes.append(shards)
    return np.array(sizes), np.array(used)


def day(noise=0.1, spike=0.0):
    """Demand, in busy shards, of a day: a wave from 1.2 to 5.2, noise, and a spike of ten minutes at noon."""
    seconds = np.arange(0, DAY, STEP)
    wave = 3.2 - 2 * np.cos(2 * math.pi * seconds / DAY)
    wave *= 1 + noise * np.random.default_rng(0).standard_normal(len(seconds))
    wave[(seconds >= DAY / 2) & (seconds < DAY / 2 + 600)] += spike
    return np.maximum(wave, 0)


def changes(sizes):
    return np.flatnonzero(np.diff(sizes))


def test_it_follows_a_day_without_flapping():
    sizes, used = simulate(day())
    assert used.mean() > 0.35  # not simply as large as allowed
    assert (used > 1).mean() == 0
    directions = np.sign(np.diff(sizes)[changes(sizes)])
    assert len(directions) <= 20
    assert (np.diff(directions) != 0).sum() <= 4  # up, down, up: a wave, not a flutter


def test_it_meets_a_spike_within_a_minute_and_gives_the_shards_back():
    sizes, used = simulate(day(spike=2.0))
    noon = int(DAY / 2 / STEP)
    over = np.flatnonzero(used[noon : noon + 120] > CONFIG.high)
    assert over.max() * STEP <= 60
    assert sizes[noon + 240 :].max() <= sizes[noon + 20 : noon + 120].max()
    assert sizes[-1] <= 4


@pytest.mark.parametrize("demand", [day(noise=1.0), day(spike=50.0), np.zeros(2000), np.full(2000, 1e6)])
def test_it_never_leaves_its_limits(demand):
    sizes, _ = simulate(demand)
    assert sizes.min() >= 2
    assert sizes.max() <= 12
    assert np.abs(np.diff(sizes)).max() <= CONFIG.max_step


def test_it_keeps_what_memory_needs():
    config = AutoscaleConfig(min_shards=2, max_shards=12, shard_bytes=10)
    sizes, _ = simulate(np.zeros(2000), config, table_bytes=45)
    assert sizes.min() == sizes[-1] == 5
    with pytest.raises(ValueError, match=r"autoscale 2:12: the tables need 13 shards of 10 bytes; raise MAX"):
        Autoscaler(config, table_bytes=121)


def test_a_load_inside_the_band_changes_nothing():
    sizes, _ = simulate(2 * np.tile([0.45, 0.7], 1000))
    assert not len(changes(sizes))


def test_a_short_dip_does_not_shrink_the_pool():
    demand = np.full(1000, 4.0)
    demand[500:540] = 0  # 200 seconds
    sizes, _ = simulate(demand)
    assert sizes[500:].min() == sizes[499]


def test_growth_waits_until_new_shards_have_been_measured():
    scaler, first = Autoscaler(CONFIG, 0).decide(0.0, 2, even(1.0, 2))
    scaler, second = scaler.decide(STEP, 4, even(1.0, 4))
    scaler, third = scaler.decide(CONFIG.rest_s, 4, even(1.0, 4))
    assert (first, second, third) == (4, 4, 7)


def test_the_network_counts_as_much_as_the_processor():
    scaler = Autoscaler(CONFIG, 0)
    assert scaler.utilisation(PoolLoad((0.1, 0.5), (0.8e9, 0.4e9))) == pytest.approx((1 + 0.5) / 2)
    assert scaler.utilisation(PoolLoad((), ())) == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_shards": 0, "max_shards": 2}, "autoscale 0:2 is no range"),
        ({"min_shards": 3, "max_shards": 2}, "autoscale 3:2 is no range"),
        ({"min_shards": 1, "max_shards": 2, "low": 0.7}, "must rise in this order"),
        ({"min_shards": 1, "max_shards": 2, "max_step": 0}, "max_step=0 must be above 0"),
    ],
)
def test_limits_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        AutoscaleConfig(**fields)


def where(number, life="1"):
    return Whereabouts(f"shard-{number}", "host:1", life)


def counted(seconds=0.0, size=0, blocks=None):
    stages = {"queue": Distribution((), (), 99 * seconds), "gather": Distribution((), (), seconds)}
    return ShardStats(stages=stages, bytes=size, block_rows={"engram.1": blocks or {}})


def test_load_is_what_was_done_between_two_readings():
    first = Reading(10.0, {where(0): counted(1.0, 100, {3: 5}), where(1): counted(2.0)})
    second = Reading(12.0, {where(0): counted(2.0, 500, {3: 9, 4: 1}), where(1): counted(2.0)})
    load, rows = second.load_since(first), second.rows_since(first, [SPEC])
    assert (load.busy, load.bytes_per_s) == ((0.5, 0.0), (200.0, 0.0))
    assert rows["engram.1"][[3, 4]].tolist() == [4, 1]
    assert rows["engram.1"].sum() == 5


def test_readings_of_the_same_moment_show_no_load():
    reading = Reading(10.0, {where(0): counted(1.0)})
    assert reading.load_since(reading).busy == ()


def test_a_shard_in_a_new_life_counts_from_its_second_reading():
    first = Reading(10.0, {where(0): counted(5.0), where(1): counted(5.0)})
    second = Reading(12.0, {where(0): counted(6.0), where(1, "2"): counted(0.1)})
    third = Reading(14.0, {where(0): counted(6.0), where(1, "2"): counted(2.1)})
    assert second.load_since(first).busy == (0.5,)
    assert third.load_since(second).busy == (0.0, 1.0)


def tuner():
    return Tuner([SPEC], Autoscaler(AutoscaleConfig(2, 8), 0))


def tuned(blocks, seconds=0.0):
    first = Reading(0.0, {where(0): counted(), where(1): counted()})
    second = Reading(1.0, {where(0): counted(seconds, blocks=blocks), where(1): counted(seconds)})
    after, shape = tuner().decide(first, SHAPE, PLACEMENT)
    assert shape == SHAPE  # one reading is no load
    return after.decide(second, SHAPE, PLACEMENT)[1]


def test_busy_shards_call_for_more():
    assert tuned({}, seconds=0.9) == Shape(3)


def test_a_hot_block_gets_a_replica_on_the_other_shard():
    even = dict.fromkeys(range(SPEC.blocks), 2_000)
    assert tuned(even) == SHAPE
    assert tuned({**even, 7: 200_000}).extra["engram.1"][7] == 1


def test_shards_that_say_nothing_change_nothing():
    after, shape = tuner().decide(Reading(0.0, {}), SHAPE, PLACEMENT)
    assert shape == SHAPE
    assert after.decide(Reading(1.0, {}), SHAPE, PLACEMENT)[1] == SHAPE
