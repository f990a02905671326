"""Placements that follow from others: few moves, bounded load, distinct replicas."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_service import Placement, RowFormat, ShardAddress, TableSpec
from memory_service.placement.assignment import UNASSIGNED

SLACK = 1.05


def addresses(names: list[int] | range) -> list[ShardAddress]:
    return [ShardAddress(f"shard-{name}", f"host:{name}") for name in names]


def check_sound(placement: Placement, table: str, wanted: np.ndarray) -> None:
    """Each block on as many distinct shards as it shall, none beyond the bound."""
    assigned = placement.assigned(table)
    for column, replicas in zip(assigned.T.tolist(), wanted.tolist(), strict=True):
        shards = [shard for shard in column if shard != UNASSIGNED]
        assert len(set(shards)) == len(shards) == replicas
        assert column[:replicas] == shards, "UNASSIGNED comes last"
    load = placement.held(table, [shard.shard for shard in placement.shards]).sum(axis=0)
    assert load.max() <= math.ceil(SLACK * wanted.sum() / len(placement.shards))


def table_of(blocks: int) -> TableSpec:
    return TableSpec("engram.1", 1, (blocks, blocks), 2, 2, (7, 11), 2, "ab" * 32, 64, RowFormat.BF16, block_rows=2)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_sequence_of_changes_moves_little(data: st.DataObject) -> None:
    spec = table_of(data.draw(st.integers(1, 300)))
    replicas = data.draw(st.integers(1, 3))
    sets = data.draw(st.lists(st.sets(st.integers(0, 11), min_size=replicas), min_size=2, max_size=5))
    placement = Placement.build(1, addresses(sorted(sets[0])), [spec], replicas)
    total = spec.blocks * replicas
    for before, after in pairwise(sets):
        following = placement.evolve(placement.epoch + 1, addresses(sorted(after)), replicas)
        check_sound(following, spec.name, np.full(spec.blocks, replicas))
        lost = placement.held(spec.name, [f"shard-{name}" for name in before - after]).sum()
        share = math.ceil(len(after - before) * total / len(after))
        assert following.moves_from(placement) <= 1.2 * max(lost, share) + len(after)
        placement = following


@pytest.mark.parametrize("replicas", [1, 2])
def test_two_shards_become_five_and_then_three(replicas: int) -> None:
    spec = table_of(4000)
    two = Placement.build(1, addresses(range(2)), [spec], replicas)
    five = two.evolve(2, addresses(range(5)), replicas)
    three = five.evolve(3, addresses(range(3)), replicas)
    assert five.moves_from(two) <= spec.blocks * replicas * 3 / 5
    leaving = five.held(spec.name, ["shard-3", "shard-4"]).sum()
    assert three.moves_from(five) == leaving
    for placement in (five, three):
        load = placement.held(spec.name, [shard.shard for shard in placement.shards]).sum(axis=0)
        assert load.min() >= load.mean() / 1.06
        first = np.bincount(placement.assigned(spec.name)[0])
        assert first.max() < 1.1 * first.mean()


def test_no_block_moves_if_nothing_changes(spec: TableSpec) -> None:
    first = Placement.build(1, addresses(range(4)), [spec], 2)
    elsewhere = [ShardAddress(shard.shard, "elsewhere:1") for shard in first.shards]
    again = first.evolve(2, elsewhere, 2)
    assert again.moves_from(first) == 0
    assert again.shards == tuple(elsewhere)


def test_a_shard_that_joins_gets_its_share() -> None:
    spec = table_of(4000)
    placement = Placement.build(1, addresses(range(20)), [spec])
    for shards in (21, 22, 23):
        placement = placement.evolve(placement.epoch + 1, addresses(range(shards)))
        joined = placement.held(spec.name, [f"shard-{shards - 1}"]).sum()
        assert joined >= int(spec.blocks / shards / SLACK)


def test_replicas_are_added_and_taken_away_in_place(spec: TableSpec) -> None:
    first = Placement.build(1, addresses(range(4)), [spec])
    second = first.evolve(2, addresses(range(4)), {spec.name: 2})
    assert second.moves_from(first) == spec.blocks
    assert second.evolve(3, addresses(range(4))).moves_from(second) == 0


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_hot_blocks_get_the_extra_replicas_requested(data: st.DataObject) -> None:
    spec = table_of(data.draw(st.integers(1, 60)))
    shards = data.draw(st.integers(2, 8))
    extra = np.array(data.draw(st.lists(st.integers(0, 9), min_size=spec.blocks, max_size=spec.blocks)))
    wanted = np.minimum(1 + extra, shards)
    built = Placement.build(1, addresses(range(shards)), [spec], 1, {spec.name: extra})
    check_sound(built, spec.name, wanted)
    evolved = built.evolve(2, addresses(range(shards)), 1, {spec.name: extra})
    assert evolved.moves_from(built) == 0
    cold = built.evolve(3, addresses(range(shards)))
    check_sound(cold, spec.name, np.ones(spec.blocks, int))


def test_impossible_numbers_of_replicas_are_named(spec: TableSpec) -> None:
    placement = Placement.build(1, addresses(range(3)), [spec])
    with pytest.raises(ValueError, match="replicas from 4 to 4"):
        placement.evolve(2, addresses(range(3)), 4)
    with pytest.raises(ValueError, match=r"nothing given for table 'engram\.1'"):
        placement.evolve(2, addresses(range(3)), {"engram.2": 1})
    unassigned = np.full_like(placement.assigned(spec.name), UNASSIGNED)
    with pytest.raises(ValueError, match="has no shard for the first replica of block 0"):
        Placement(2, placement.shards, {spec.name: unassigned})
