"""Replicas for hot blocks: what they do to the busiest shard, and what they cost."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.pool.policies.hot_blocks import SpreadConfig, imbalance, shard_load, spread_hot_blocks
from memory_service import Placement, ShardAddress
from memory_service.placement.assignment import UNASSIGNED

BLOCKS = 800
SHARDS = [ShardAddress(f"shard-{i}", f"host:{i}") for i in range(6)]
CONFIG = SpreadConfig()


class Spec:
    name, blocks = "engram.1", BLOCKS


def placed(replicas=1, extra=None):
    counts = np.zeros(BLOCKS, np.int64)
    for block, count in (extra or {}).get("engram.1", {}).items():
        counts[block] = count
    first = Placement.build(1, SHARDS, [Spec], replicas)
    return first.evolve(2, SHARDS, replicas, {"engram.1": counts})


def even():
    return {"engram.1": np.full(BLOCKS, 10_000)}


def skewed(hot=(3, 400)):
    """Nearly a third of all rows falls on each of a few blocks, as if they held the most frequent 2-grams."""
    load = np.random.default_rng(0).integers(800, 1200, BLOCKS)
    load[list(hot)] = load.sum() // 2
    return {"engram.1": load}


@pytest.mark.parametrize(("replicas", "hot"), [(1, (3, 400)), (2, (3,))])
def test_a_skewed_load_is_evened_out_with_little_memory(replicas, hot):
    load = skewed(hot)
    extra = spread_hot_blocks(load, placed(replicas), {}, CONFIG)
    assert imbalance(load, placed(replicas)) > 1.4
    assert imbalance(load, placed(replicas, extra)) <= CONFIG.worst
    assert set(hot) <= set(extra["engram.1"])
    assert sum(extra["engram.1"].values()) <= CONFIG.most_extra * BLOCKS * replicas


def test_an_even_load_needs_nothing():
    assert spread_hot_blocks(even(), placed(), {}, CONFIG) == {}


def test_replicas_that_do_their_work_are_kept_and_others_given_up():
    extra = spread_hot_blocks(skewed(), placed(), {}, CONFIG)
    assert spread_hot_blocks(skewed(), placed(1, extra), extra, CONFIG) == extra
    assert spread_hot_blocks(even(), placed(1, extra), extra, CONFIG) == {}


def test_when_other_blocks_become_hot_they_get_the_replicas():
    extra = spread_hot_blocks(skewed(), placed(), {}, CONFIG)
    moved = spread_hot_blocks(skewed((7, 9)), placed(1, extra), extra, CONFIG)
    assert {7, 9} <= set(moved["engram.1"])
    assert imbalance(skewed((7, 9)), placed(1, moved)) <= CONFIG.worst


def test_few_rows_prove_nothing():
    load = {"engram.1": skewed()["engram.1"] // 1000}
    assert spread_hot_blocks(load, placed(), {}, CONFIG) == {}


def test_extra_replicas_stay_within_their_memory():
    load = {"engram.1": np.random.default_rng(0).pareto(0.4, BLOCKS).astype(np.int64) * 1000}
    config = SpreadConfig(worst=1.0001, most_extra=0.02)
    extra = spread_hot_blocks(load, placed(), {}, config)
    assert sum(extra.get("engram.1", {}).values()) <= 0.02 * BLOCKS
    assert imbalance(load, placed(1, extra)) <= imbalance(load, placed())


def test_the_load_of_a_block_is_shared_by_its_replicas():
    placement = placed(2)
    load = np.zeros(BLOCKS, np.int64)
    load[5] = 10
    shards = shard_load({"engram.1": load}, placement)
    assert sorted(shards) == [0, 0, 0, 0, 5, 5]
    assert (placement.tables["engram.1"] != UNASSIGNED).all()
