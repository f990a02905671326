"""A lookup by itself: parts that land, fail, come late or of another version, in every order."""

from __future__ import annotations

import numpy as np
import pytest

from memory_service import MemoryServiceError, ShardAddress, ShardUnavailable, TableSpec
from memory_service.client.lookup import Lookup, Part
from memory_service.tables.distinct import DistinctRows

SHARDS = [ShardAddress(f"shard-{i}", "") for i in range(3)]


class Asker:
    def __init__(self) -> None:
        self.torn_lookups, self.failures, self.endings = [], [], []

    def landed(self, part: Part, rows: np.ndarray, version: int) -> None: ...

    def failed(self, part: Part, error: MemoryServiceError) -> None:
        self.failures.append(part)

    def torn(self, lookup: Lookup) -> None:
        self.torn_lookups.append(lookup)

    def ended(self, lookup: Lookup, error: MemoryServiceError | None) -> None:
        self.endings.append(error)


@pytest.fixture
def asker() -> Asker:
    return Asker()


@pytest.fixture
def lookup(spec: TableSpec, asker: Asker) -> Lookup:
    return Lookup(asker, spec, DistinctRows(spec, np.array([9, 2, 7, 2, 5])), 0.0, 1.0)


def rows_of(ids: np.ndarray, spec: TableSpec) -> np.ndarray:
    return np.repeat(ids.astype(np.uint8)[:, None], spec.row_bytes, axis=1)


def land(part: Part, version: int = 1) -> None:
    part.land(rows_of(part.ids, part.lookup.spec), version)


def ask(lookup: Lookup, *shards: int) -> tuple[int, list[Part]]:
    attempt = lookup.begin()
    return attempt, lookup.split(np.array(shards, np.uint16), SHARDS, 1, 100, None)


def found(lookup: Lookup) -> list[int]:
    rows = lookup.future.result(timeout=0)
    return rows.unique[rows.inverse][:, 0].tolist()


def test_parts_land_in_any_order_before_and_after_the_inverse(lookup: Lookup, asker: Asker) -> None:
    attempt, (first, second) = ask(lookup, 1, 0, 1, 0)
    land(second)
    lookup.arrange(attempt)
    assert not lookup.future.done()
    land(first)
    assert found(lookup) == [9, 2, 7, 2, 5]
    assert asker.endings == [None]


def test_a_part_is_done_when_its_stand_ins_are(lookup: Lookup) -> None:
    attempt, (part,) = ask(lookup, 0, 0, 0, 0)
    lookup.arrange(attempt)
    left, right = lookup.stand_in(part, np.array([1, 2, 1, 2], np.uint16), SHARDS, 1, 100)
    land(left)
    assert not lookup.future.done()
    land(right)
    assert found(lookup) == [9, 2, 7, 2, 5]
    land(part)  # too late, and of no matter


def test_nobody_hears_of_a_failure_that_something_makes_up_for(lookup: Lookup, asker: Asker) -> None:
    attempt, (part,) = ask(lookup, 0, 0, 0, 0)
    lookup.arrange(attempt)
    (hedge,) = lookup.stand_in(part, np.full(4, 1, np.uint16), SHARDS, 1, 100)
    hedge.fail(ShardUnavailable("gone"))
    assert asker.failures == []
    part.fail(ShardUnavailable("gone too"))
    assert asker.failures == [part]
    (last,) = lookup.stand_in(part, np.full(4, 2, np.uint16), SHARDS, 1, 100)
    assert last.tried == {"shard-0", "shard-2"}
    land(last)
    assert found(lookup) == [9, 2, 7, 2, 5]


def test_versions_are_never_mixed(lookup: Lookup, asker: Asker) -> None:
    attempt, (first, second, third) = ask(lookup, 0, 1, 2, 0)
    land(first, version=1)
    land(second, version=2)
    land(third, version=2)
    lookup.arrange(attempt)
    assert asker.torn_lookups == [lookup]  # once, however many parts are newer
    assert not lookup.future.done()
    attempt, (only,) = ask(lookup, 1, 1, 1, 1)
    land(first, version=1)  # of the attempt that was given up
    land(only, version=2)
    lookup.arrange(attempt - 1)  # the thread that began with that attempt comes late
    assert not lookup.future.done()
    lookup.arrange(attempt)
    assert found(lookup) == [9, 2, 7, 2, 5]


def test_a_shard_that_sends_too_few_rows_fails(lookup: Lookup, asker: Asker) -> None:
    _, (part,) = ask(lookup, 0, 0, 0, 0)
    part.land(np.zeros((3, lookup.spec.row_bytes), np.uint8), 1)
    assert asker.failures == [part]


def test_the_overdue_are_named(lookup: Lookup) -> None:
    _, parts = ask(lookup, 0, 1, 1, 0)
    land(parts[0])
    error = lookup.overdue()
    assert "shard-1" in str(error)
    assert "shard-0" not in str(error)
    lookup.reject(error)
    assert lookup.future.exception(timeout=0) is error
    land(parts[1])
