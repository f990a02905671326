from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_service.client.cache import RowCache, set_bytes
from memory_service.native import extension

ROWS = 300
ROW_BYTES = 12


def cache_of(sets: int, ways: int = 4) -> RowCache:
    return RowCache(ROWS, ROW_BYTES, sets * set_bytes(ROWS, ROW_BYTES, ways), ways)


def ids_of(*ids: int) -> np.ndarray:
    return np.array(ids, np.int64)


def rows_of(ids: np.ndarray, version: int) -> np.ndarray:
    """Bytes that no other row and no other version has."""
    return np.repeat(np.stack([ids, np.full(len(ids), version)], 1).astype("<u2"), 3, axis=1).view(np.uint8)


def get(cache: RowCache, ids: np.ndarray) -> np.ndarray:
    """Which ids it has, after checking that it gives their right bytes and touches nothing else."""
    out = np.full((len(ids), ROW_BYTES), 0xAB, np.uint8)
    found, version = cache.get(ids, out)
    np.testing.assert_array_equal(out[found], rows_of(ids[found], version))
    assert (out[~found] == 0xAB).all()
    return found


def put(cache: RowCache, ids: np.ndarray, version: int = 0) -> None:
    cache.put(ids, rows_of(ids, version), version)


distinct_ids = st.lists(st.integers(0, ROWS - 1), unique=True, max_size=60).map(lambda ids: np.array(ids, np.int64))
calls = st.lists(st.tuples(st.none() | st.integers(0, 3), distinct_ids), max_size=30)


@settings(deadline=None)  # a busy machine is no failure
@given(calls, st.integers(1, 9), st.sampled_from([1, 2, 8]))
def test_gives_nothing_but_rows_that_were_put_at_the_newest_version(
    history: list[tuple[int | None, np.ndarray]], sets: int, ways: int
) -> None:
    cache, twin = cache_of(sets, ways), cache_of(sets, ways)
    newest, model, asked, found = -1, set[int](), 0, 0
    for version, ids in history:
        if version is None:
            hits = get(cache, ids)
            np.testing.assert_array_equal(hits, get(twin, ids))
            assert set(ids[hits].tolist()) <= model
            asked, found = asked + len(ids), found + int(hits.sum())
        else:
            put(cache, ids, version)
            put(twin, ids, version)
            if version > newest:
                newest, model = version, set()
            if version == newest:
                model |= set(ids.tolist())
        assert cache.version == newest
    assert (cache.hits, cache.misses) == (found, asked - found)
    assert get(cache, np.arange(ROWS)).sum() <= cache.slots


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(0, 5000), st.integers(1, 9), st.integers(1, 300))
def test_stays_within_its_bytes(spare: int, ways: int, row_bytes: int) -> None:
    capacity = set_bytes(10**6, row_bytes, ways) + spare
    cache = RowCache(10**6, row_bytes, capacity, ways)
    assert cache.nbytes <= capacity
    assert cache.nbytes > capacity - set_bytes(10**6, row_bytes, ways)


def test_a_table_that_fits_is_held_whole() -> None:
    cache = RowCache(ROWS, ROW_BYTES, 1 << 30)
    put(cache, np.arange(ROWS))
    assert get(cache, np.arange(ROWS)).all()
    assert cache.nbytes < 1 << 20


def test_newcomers_to_one_set_do_not_displace_each_other() -> None:
    cache = cache_of(sets=1, ways=4)
    put(cache, ids_of(10, 11, 12, 13, 14, 15))
    assert get(cache, ids_of(10, 11, 12, 13, 14, 15)).tolist() == [True] * 4 + [False] * 2
    assert cache.evictions == 0


def test_a_full_set_keeps_what_is_asked_for_often() -> None:
    cache = cache_of(sets=1, ways=4)
    put(cache, ids_of(1, 2, 3, 4))
    for newcomer in range(10, 30):
        assert get(cache, ids_of(2, 3)).all()
        put(cache, ids_of(newcomer))
        assert get(cache, ids_of(newcomer)).all()
    assert cache.evictions == 20


def test_what_was_asked_for_often_long_ago_leaves_in_the_end() -> None:
    cache = cache_of(sets=1, ways=4)
    put(cache, ids_of(1))
    for _ in range(10):
        get(cache, ids_of(1))
    for newcomer in range(10, 200):
        put(cache, ids_of(newcomer))
    assert not get(cache, ids_of(1)).any()


def test_a_newer_version_empties_it_and_an_older_one_is_ignored() -> None:
    cache = cache_of(sets=50)
    put(cache, ids_of(1, 2), version=3)
    put(cache, ids_of(3), version=2)
    assert get(cache, ids_of(1, 2, 3)).tolist() == [True, True, False]
    put(cache, ids_of(3), version=4)
    assert get(cache, ids_of(1, 2, 3)).tolist() == [False, False, True]
    assert cache.version == 4


def test_ids_past_32_bits_do_not_alias() -> None:
    cache = RowCache(1 << 40, ROW_BYTES, 1 << 20)
    put(cache, ids_of(5))
    assert not get(cache, ids_of(5 + (1 << 32))).any()


def test_threads_see_whole_rows_of_one_version() -> None:
    cache = cache_of(sets=4)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for step in range(300):
            put(cache, rng.permutation(ROWS)[:40], version=step // 100)
            get(cache, rng.permutation(ROWS)[:40])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert cache.version == 2
    assert cache.hits + cache.misses == 4 * 300 * 40


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": 0}, "rows=0 must be at least 1"),
        ({"row_bytes": 0}, "row_bytes=0"),
        ({"ways": 0}, "ways=0"),
        ({"capacity_bytes": 100}, r"capacity_bytes=100 is too small for one set of 8 rows.*give at least 140"),
    ],
)
def test_refuses_what_cannot_be(change: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RowCache(**{"rows": ROWS, "row_bytes": ROW_BYTES, "capacity_bytes": 1000, **change})


@pytest.mark.parametrize(
    ("ids", "rows", "said"),
    [
        (np.array([ROWS]), np.zeros((1, ROW_BYTES), np.uint8), f"{ROWS} is no row"),
        (np.array([-1]), np.zeros((1, ROW_BYTES), np.uint8), "-1 is no row"),
        (np.array([1.0]), np.zeros((1, ROW_BYTES), np.uint8), "must be int64"),
        (np.array([1, 2]), np.zeros((1, ROW_BYTES), np.uint8), r"must be uint8 \(2, 12\)"),
        (np.array([1]), np.zeros((1, ROW_BYTES), np.int8), "must be uint8"),
    ],
)
def test_refuses_ids_and_rows_that_do_not_fit(ids: np.ndarray, rows: np.ndarray, said: str) -> None:
    cache = cache_of(sets=4)
    with pytest.raises(ValueError, match=said):
        cache.get(ids, rows)
    with pytest.raises(ValueError, match=said):
        cache.put(ids, rows, 0)


@pytest.mark.skipif(extension() is None, reason="the native implementation is not built")
@settings(deadline=None)
@given(calls, st.integers(1, 9), st.sampled_from([1, 2, 8]), st.sampled_from([ROWS, 1 << 40]))
def test_the_native_cache_keeps_the_same_rows(
    history: list[tuple[int | None, np.ndarray]], sets: int, ways: int, rows: int
) -> None:
    size = sets * set_bytes(rows, ROW_BYTES, ways)
    native, other = RowCache(rows, ROW_BYTES, size, ways, native=True), RowCache(rows, ROW_BYTES, size, ways, False)
    for version, ids in history:
        if version is None:
            np.testing.assert_array_equal(get(native, ids), get(other, ids))
        else:
            put(native, ids, version)
            put(other, ids, version)
        for counted in ("hits", "misses", "evictions", "version"):
            assert getattr(native, counted) == getattr(other, counted)


@pytest.mark.skipif(extension() is None, reason="the native implementation is not built")
def test_the_native_cache_clears_its_scratch_when_its_numbers_are_used_up() -> None:
    cache = extension().client.Cache(rows=ROWS, sets=1, ways=2, row_bytes=ROW_BYTES, calls=3)
    for first in range(0, 40, 4):
        ids = np.arange(first, first + 4)
        cache.put(ids, np.zeros((4, ROW_BYTES), np.uint8), 0)
        found = np.zeros(4, np.bool_)
        assert cache.get(ids, np.empty((4, ROW_BYTES), np.uint8), found) == (2, 0)
        np.testing.assert_array_equal(found, [True, True, False, False])
