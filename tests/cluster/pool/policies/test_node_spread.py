"""Which shards move when nodes come, go and fill up, with nodes that are only names."""

from __future__ import annotations

from collections import Counter

import pytest

from cluster.pool.policies.node_spread import Move, Spreader, next_move


def nodes(text):
    """Nodes of shard-0, shard-1, ..., a letter each."""
    return {f"shard-{i}": node for i, node in enumerate(text)}


@pytest.mark.parametrize(
    ("before", "with_room", "move"),
    [
        ("aabb", "c", Move("shard-1", "c")),
        ("aaab", "ab", Move("shard-2", "b")),
        ("aaaabbc", "bc", Move("shard-3", "c")),
        ("aabbc", "abcd", Move("shard-1", "d")),
        ("aaa", "", None),  # no node has room
        ("aab", "ab", None),  # as even as three shards on two nodes can be
        ("aabb", "ab", None),
        ("abc", "abcd", None),  # one each: which nodes they are on makes no difference
        ("aaaabb", "a", None),
        ("", "a", None),
    ],
)
def test_a_shard_moves_from_the_fullest_node_to_the_emptiest_with_room(before, with_room, move):
    assert next_move(nodes(before), list(with_room)) == move


@pytest.mark.parametrize("before", ["aaaaaaaa", "aaaaabbb", "aabbccdd", "aaaaaab"])
def test_moves_come_to_an_end_with_shards_spread_evenly(before):
    where, moves = nodes(before), 0
    while move := next_move(where, "abcde"):
        where[move.shard] = move.node
        moves += 1
        assert moves <= len(before)
    counts = [Counter(where.values())[node] for node in "abcde"]
    assert max(counts) - min(counts) <= 1


def test_shards_on_unknown_nodes_stay_where_they_are():
    assert next_move({"shard-0": "", "shard-1": "", "shard-2": ""}, ["a"]) is None


def test_a_rest_follows_every_move():
    spreader, first = Spreader(10).decide(0, nodes("aaaa"), "b")
    assert first == Move("shard-3", "b")
    assert spreader.decide(9.9, nodes("aaab"), "b") == (spreader, None)
    spreader, second = spreader.decide(10, nodes("aaab"), "b")
    assert second == Move("shard-2", "b")
    assert spreader.decide(30, nodes("aabb"), "b") == (spreader, None)


def test_moves_in_vain_become_rare_until_one_helps():
    spreader, made = Spreader(10, most_rest_s=40), []
    for now in range(200):
        spreader, move = spreader.decide(now, nodes("aaaa"), "b")
        made += [now] if move else []
    assert made == [0, 10, 30, 70, 110, 150, 190]
    spreader, move = spreader.decide(230, nodes("aaab"), "b")
    assert move
    assert spreader.decide(240, nodes("aabbbb"), "a")[1]
