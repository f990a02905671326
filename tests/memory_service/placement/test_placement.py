from __future__ import annotations

import hashlib
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_service import Placement, ShardAddress, TableSpec, UnknownTable, assign_blocks
from memory_service.protocol.messages import placement_from_proto, placement_to_proto


def names(count: int) -> list[str]:
    return [f"shard-{index}" for index in range(count)]


@settings(max_examples=150, deadline=None)
@given(blocks=st.integers(1, 400), shards=st.integers(1, 12), data=st.data())
def test_every_block_is_placed_on_distinct_shards_under_the_cap(blocks: int, shards: int, data: st.DataObject) -> None:
    replicas = data.draw(st.integers(1, shards))
    slack = data.draw(st.sampled_from([1.0, 1.05, 1.5]))
    assigned = assign_blocks("engram.1", blocks, names(shards), replicas, slack)
    assert assigned.shape == (replicas, blocks)
    assert assigned.dtype == np.uint16
    assert assigned.max() < shards
    assert all(len(set(column)) == replicas for column in assigned.T.tolist())
    assert np.bincount(assigned.ravel()).max() <= math.ceil(slack * blocks * replicas / shards)


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("shards", [3, 8, 24])
def test_adding_a_shard_moves_about_its_share(shards: int, replicas: int) -> None:
    blocks = 40_000
    before = assign_blocks("engram.1", blocks, names(shards), replicas)
    after = assign_blocks("engram.1", blocks, names(shards + 1), replicas)
    stays = (before[:, None, :] == after[None, :, :]).any(axis=1)
    assert (~stays).sum() <= 1.2 * blocks * replicas / (shards + 1)


def test_losing_a_shard_moves_about_its_share() -> None:
    before = assign_blocks("engram.1", 40_000, names(8))
    others = [name for name in names(8) if name != "shard-3"]
    after = assign_blocks("engram.1", 40_000, others)
    moved = np.array(names(8))[before] != np.array(others)[after]
    assert moved.sum() <= 1.2 * 40_000 / 8


def test_every_shard_gets_a_mix_of_columns() -> None:
    blocks, columns, shards = 24_000, 24, 8
    assigned = assign_blocks("engram.1", blocks, names(shards))[0]
    by_column = assigned.reshape(columns, blocks // columns)
    counts = np.stack([np.bincount(column, minlength=shards) for column in by_column])
    fair = blocks / columns / shards
    assert counts.min() > 0.6 * fair
    assert counts.max() < 1.5 * fair


def test_two_tables_are_placed_independently_of_each_other() -> None:
    first, second = (assign_blocks(table, 8000, names(8))[0] for table in ("engram.1", "engram.2"))
    assert 0.05 < (first == second).mean() < 0.2


def test_depends_on_names_only_and_not_on_their_order() -> None:
    forwards, backwards = names(5), names(5)[::-1]
    here = np.array(forwards)[assign_blocks("engram.1", 500, forwards, 2)]
    there = np.array(backwards)[assign_blocks("engram.1", 500, backwards, 2)]
    np.testing.assert_array_equal(here, there)


def test_another_process_computes_the_same_placement() -> None:
    code = (
        "import hashlib; from memory_service.placement.placement import assign_blocks as a;"
        "print(hashlib.sha256(a('engram.1', 999, ['x', 'y', 'z'], 2).tobytes()).hexdigest())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    here = assign_blocks("engram.1", 999, ["x", "y", "z"], 2).tobytes()
    assert out.strip() == hashlib.sha256(here).hexdigest()


def test_the_assignment_never_changes_between_releases() -> None:
    assigned = assign_blocks("engram.1", 12, names(4), 2)
    assert assigned.tolist() == [[1, 3, 1, 1, 3, 3, 3, 2, 0, 1, 0, 2], [3, 2, 2, 3, 1, 0, 0, 0, 1, 0, 2, 0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shards": []}, "at least one shard"),
        ({"shards": ["a", "a"]}, "must differ"),
        ({"replicas": 3}, "replicas=3"),
        ({"replicas": 0}, "replicas=0"),
        ({"slack": 0.5}, "slack=0.5"),
    ],
)
def test_impossible_arguments_of_an_assignment_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assign_blocks(**{"table": "engram.1", "blocks": 10, "shards": ["a", "b"], **arguments})  # type: ignore[arg-type]


def test_a_placement_says_which_shard_serves_which_block(spec: TableSpec) -> None:
    placement = Placement.build(3, [ShardAddress(name, f"{name}:1") for name in names(3)], [spec], replicas=2)
    held = [placement.blocks_of(spec.name, name) for name in names(3)]
    assert sum(map(len, held)) == 2 * spec.blocks
    first = np.concatenate([placement.blocks_of(spec.name, name, replica=0) for name in names(3)])
    np.testing.assert_array_equal(np.sort(first), np.arange(spec.blocks))
    assert placement.blocks_of(spec.name, "stranger").size == 0
    with pytest.raises(UnknownTable, match="epoch 3"):
        placement.assigned("engram.9")


def test_a_placement_survives_the_way_through_its_message(spec: TableSpec) -> None:
    placement = Placement.build(7, [ShardAddress(name, f"{name}:1") for name in names(3)], [spec], replicas=2)
    back = placement_from_proto(placement_to_proto(placement))
    assert (back.epoch, back.shards) == (7, placement.shards)
    np.testing.assert_array_equal(back.tables[spec.name], placement.tables[spec.name])


def test_a_placement_that_contradicts_itself_is_refused() -> None:
    shards = (ShardAddress("shard-0", ""),)
    with pytest.raises(ValueError, match="epochs count from 1"):
        Placement(0, shards, {})
    with pytest.raises(ValueError, match="names shard 1"):
        Placement(1, shards, {"engram.1": np.array([[0, 1]], np.uint16)})
    with pytest.raises(ValueError, match="uint16"):
        Placement(1, shards, {"engram.1": np.array([[0, 0]])})
