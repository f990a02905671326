from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.memories.cache_models import Accesses, interleave, lru_distances, optimum, previous_use, replay
from memory_service.client.cache import RowCache, set_bytes

ROWS = 1000

requests = st.lists(st.integers(0, 12), min_size=1, max_size=80).map(lambda ids: np.array(ids, np.int64))


def lru_hits(ids: np.ndarray, capacity: int) -> list[bool]:
    held: list[int] = []
    hits = []
    for row in ids.tolist():
        hits.append(row in held)
        held = [row, *(other for other in held if other != row)][:capacity]
    return hits


def best_hits(ids: np.ndarray, capacity: int) -> int:
    """Belady's rule as it is told: of the rows held and the newcomer, drop the one asked for latest."""
    asked, held, hits = ids.tolist(), set[int](), 0
    for now, row in enumerate(asked):
        hits += row in held
        rest = asked[now + 1 :]
        held = set(sorted(held | {row}, key=lambda r: rest.index(r) if r in rest else len(asked))[:capacity])
    return hits


@given(requests, st.integers(1, 14))
def test_distances_tell_the_hits_of_every_lru_size(ids: np.ndarray, capacity: int) -> None:
    assert (lru_distances(previous_use(ids)) <= capacity).tolist() == lru_hits(ids, capacity)


@given(requests, st.integers(1, 14))
def test_optimum_hits_as_often_as_beladys_rule(ids: np.ndarray, capacity: int) -> None:
    hits = optimum(previous_use(ids), capacity)
    assert hits.sum() == best_hits(ids, capacity)
    assert not hits[previous_use(ids) < 0].any()


def test_accesses_name_each_row_once_a_lookup() -> None:
    rows = np.array([[5, 9], [5, 8], [5, 9], [1, 9], [7, 7]])
    accesses = Accesses.of(rows, tokens_a_lookup=2)
    assert accesses.ids.tolist() == [5, 8, 9, 1, 5, 9]
    assert accesses.bounds.tolist() == [0, 3, 6]
    assert accesses.tokens == 4
    selected = accesses.select(accesses.ids > 5)
    assert (selected.ids.tolist(), selected.bounds.tolist()) == ([8, 9, 9], [0, 2, 3])


def test_equal_streams_take_turns_chunk_by_chunk() -> None:
    assert interleave(13, streams=2, chunk=2).tolist() == [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]


def test_replay_of_bare_ids_hits_as_the_cache_of_whole_rows() -> None:
    rng = np.random.default_rng(0)
    asked = np.minimum(rng.zipf(1.2, (2000, 3)), ROWS - 1).astype(np.int64)
    accesses = Accesses.of(asked, tokens_a_lookup=40)
    packed = rng.integers(0, 255, (ROWS, 264), np.uint8)
    whole = RowCache(ROWS, 264, 40 * set_bytes(ROWS, 264, 4), ways=4)
    hits = []
    for lookup in np.split(accesses.ids, accesses.bounds[1:-1]):
        found, _ = whole.get(lookup, np.empty((len(lookup), 264), np.uint8))
        whole.put(lookup[~found], packed[lookup[~found]], 0)
        hits += found.tolist()
    bare = RowCache(ROWS, 1, 40 * set_bytes(ROWS, 1, 4), ways=4)
    assert replay(accesses, bare).tolist() == hits
    assert 0.2 < np.mean(hits) < 0.99


def test_replay_of_tiny_lookups_finds_the_rows_of_those_just_before() -> None:
    accesses = Accesses.of(np.array([[3], [4], [3], [3]]), tokens_a_lookup=1)
    assert replay(accesses, RowCache(ROWS, 1, 1 << 12)).tolist() == [False, False, True, True]
