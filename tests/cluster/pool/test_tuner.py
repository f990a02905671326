"""From counters of shards to the shape of a pool."""

from __future__ import annotations

from cluster.pool.autoscale import AutoscaleConfig
from cluster.pool.load import LoadMeter
from cluster.pool.plan import Shape, Whereabouts
from cluster.pool.tuner import PoolTuner
from memory_service import Placement, RowFormat, ShardAddress, TableSpec
from memory_service.metrics.metrics import Distribution
from memory_service.protocol.reports import ShardStats

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


def where(number, life="1"):
    return Whereabouts(f"shard-{number}", "host:1", life)


def counted(seconds=0.0, size=0, blocks=None):
    stages = {"queue": Distribution((), (), 99 * seconds), "gather": Distribution((), (), seconds)}
    return ShardStats(stages=stages, bytes=size, block_rows={"engram.1": blocks or {}})


def test_load_is_what_was_done_between_two_readings():
    meter = LoadMeter([SPEC])
    load, rows = meter.read(10.0, {where(0): counted(1.0, 100, {3: 5}), where(1): counted(2.0)})
    assert (load.busy, rows) == ((), {})
    load, rows = meter.read(12.0, {where(0): counted(2.0, 500, {3: 9, 4: 1}), where(1): counted(2.0)})
    assert (load.busy, load.bytes_per_s) == ((0.5, 0.0), (200.0, 0.0))
    assert rows["engram.1"][[3, 4]].tolist() == [4, 1]
    assert rows["engram.1"].sum() == 5


def test_a_shard_in_a_new_life_counts_from_its_second_reading():
    meter = LoadMeter([SPEC])
    meter.read(10.0, {where(0): counted(5.0), where(1): counted(5.0)})
    load, _ = meter.read(12.0, {where(0): counted(6.0), where(1, "2"): counted(0.1)})
    assert load.busy == (0.5,)
    load, _ = meter.read(14.0, {where(0): counted(6.0), where(1, "2"): counted(2.1)})
    assert load.busy == (0.0, 1.0)


def decide(blocks, seconds=0.0):
    tuner = PoolTuner(AutoscaleConfig(2, 8), [SPEC], SHAPE)
    tuner.decide(0.0, {where(0): counted(), where(1): counted()}, SHAPE, PLACEMENT)
    readings = {where(0): counted(seconds, blocks=blocks), where(1): counted(seconds)}
    return tuner.decide(1.0, readings, SHAPE, PLACEMENT)


def test_busy_shards_call_for_more():
    assert decide({}, seconds=0.9) == Shape(3)


def test_a_hot_block_gets_a_replica_on_the_other_shard():
    even = dict.fromkeys(range(SPEC.blocks), 2_000)
    assert decide(even) == SHAPE
    assert decide({**even, 7: 200_000}).extra["engram.1"][7] == 1


def test_shards_that_say_nothing_change_nothing():
    tuner = PoolTuner(AutoscaleConfig(2, 8), [SPEC], SHAPE)
    assert tuner.decide(0.0, {}, SHAPE, PLACEMENT) == SHAPE
    assert tuner.decide(1.0, {}, SHAPE, PLACEMENT) == SHAPE
