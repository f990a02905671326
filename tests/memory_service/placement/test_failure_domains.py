"""Placements that keep the replicas of a block in different domains."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_service import Placement, RowFormat, ShardAddress, TableSpec
from memory_service.placement.assignment import UNASSIGNED
from memory_service.placement.failure_domains import MOST_SHARE, number_domains, shares

SLACK = 1.05


def table_of(blocks: int) -> TableSpec:
    return TableSpec("engram.1", 1, (blocks, blocks), 2, 2, (7, 11), 2, "ab" * 32, 64, RowFormat.BF16, block_rows=2)


def addresses(count: int) -> list[ShardAddress]:
    return [ShardAddress(f"shard-{index}", f"host:{index}") for index in range(count)]


def on(*nodes: int) -> dict[str, str]:
    """The node of each shard."""
    return {f"shard-{index}": f"node-{node}" for index, node in enumerate(nodes)}


def together(placement: Placement, nodes: dict[str, str]) -> int:
    """Replicas that are on a node with another one of their block."""
    count = 0
    for column in placement.assigned("engram.1").T.tolist():
        shards = [placement.shards[index].shard for index in column if index != UNASSIGNED]
        assert len(set(shards)) == len(shards)
        count += len(shards) - len({nodes[shard] for shard in shards})
    return count


def load(placement: Placement) -> np.ndarray:
    return placement.held("engram.1", [shard.shard for shard in placement.shards]).sum(axis=0)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_equal_nodes_never_hold_two_replicas_of_a_block(data: st.DataObject) -> None:
    spec = table_of(data.draw(st.integers(1, 200)))
    nodes = data.draw(st.integers(2, 5))
    replicas = data.draw(st.integers(1, min(3, nodes)))
    shards = nodes * data.draw(st.integers(1, 4))
    where = on(*data.draw(st.permutations([index % nodes for index in range(shards)])))
    built = Placement.build(1, addresses(shards), [spec], replicas, domains=where)
    elsewhere = on(*data.draw(st.permutations([index % nodes for index in range(shards)])))
    for placement, places in (
        (built, where),
        (built.evolve(2, addresses(shards), replicas, None, elsewhere), elsewhere),
    ):
        assert together(placement, places) == 0
        assert load(placement).sum() == spec.blocks * replicas
        assert load(placement).max() <= math.ceil(SLACK * (spec.blocks * replicas) / shards)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_two_replicas_are_apart_on_unequal_nodes_if_the_bound_allows(data: st.DataObject) -> None:
    spec = table_of(data.draw(st.integers(1, 200)))
    nodes = data.draw(st.lists(st.integers(0, 3), min_size=2, max_size=10).filter(lambda nodes: len(set(nodes)) > 1))
    shards = len(nodes)
    placement = Placement.build(1, addresses(shards), [spec], 2, domains=on(*nodes))
    assert load(placement).sum() == 2 * spec.blocks
    assert load(placement).max() <= SLACK * MOST_SHARE * 2 * spec.blocks / shards + 1
    largest = max(map(nodes.count, nodes))
    if largest <= shards * 2 / 3:  # the others can hold one replica of each block
        assert together(placement, on(*nodes)) == 0
    if largest <= shards / 2:  # without any having more than the others
        assert load(placement).max() <= math.ceil(SLACK * (2 * spec.blocks) / shards)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_shard_on_another_node_moves_little_else(data: st.DataObject) -> None:
    spec = table_of(data.draw(st.integers(1, 200)))
    before = on(0, 0, 1, 1, 2, 2)
    placement = Placement.build(1, addresses(6), [spec], 2, domains=before)
    after = before | {f"shard-{data.draw(st.integers(0, 5))}": f"node-{data.draw(st.integers(0, 2))}"}
    crowded = together(placement, after)
    following = placement.evolve(2, addresses(6), 2, None, after)
    assert together(following, after) == 0
    assert following.moves_from(placement) <= 2 * crowded
    assert following.evolve(3, addresses(6), 2, None, after).moves_from(following) == 0


def test_what_the_bound_keeps_together_stays_where_it_is() -> None:
    spec = table_of(1000)
    nodes = on(0, 1, 1, 1)
    placement = Placement.build(1, addresses(4), [spec], 2, domains=nodes)
    assert 0 < together(placement, nodes) <= spec.blocks / 4
    assert placement.evolve(2, addresses(4), 2, None, nodes).moves_from(placement) == 0


@pytest.mark.parametrize("domains", [None, {}, on(0, 1, 2, 3), on(0, 0, 0, 0), {"shard-0": "node-0"}])
def test_one_node_or_one_for_each_changes_nothing(domains: dict[str, str] | None) -> None:
    plain = Placement.build(1, addresses(4), [table_of(500)], 2)
    built = Placement.build(1, addresses(4), [table_of(500)], 2, domains=domains)
    assert built.same_as(plain)
    following = plain.evolve(2, addresses(3), 2, {"engram.1": np.arange(500) % 2})
    assert plain.evolve(2, addresses(3), 2, {"engram.1": np.arange(500) % 2}, domains).same_as(following)


def test_replicas_beyond_the_number_of_nodes_are_on_any() -> None:
    extra = {"engram.1": np.arange(100) % 3}
    placement = Placement.build(1, addresses(4), [table_of(100)], 2, extra, on(0, 0, 1, 1))
    assert together(placement, on(0, 0, 1, 1)) == extra["engram.1"].sum()


def test_a_surplus_replica_is_taken_from_where_there_are_two() -> None:
    nodes = on(0, 0, 1, 1)
    three = Placement.build(1, addresses(4), [table_of(400)], 3, domains=nodes)
    two = three.evolve(2, addresses(4), 2, None, nodes)
    assert together(two, nodes) == 0
    assert two.moves_from(three) <= 0.05 * 800


def test_a_shard_of_an_unknown_node_is_alone() -> None:
    assert number_domains(["a", "b", "c", "d"], {"a": "x", "b": "", "c": "x"}).tolist() == [0, 1, 0, 2]


def test_shards_of_small_nodes_have_more_up_to_a_bound() -> None:
    assert shares(np.array([0, 1, 1]), 300, 600).tolist() == [1.5, 0.75, 0.75]
    assert shares(np.array([0, 1, 1, 1]), 400, 800).tolist() == pytest.approx([1.5, 5 / 6, 5 / 6, 5 / 6])
    assert shares(np.array([0, 0, 1, 2]), 400, 800).tolist() == [1, 1, 1, 1]
