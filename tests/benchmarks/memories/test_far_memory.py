from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing

import numpy as np
import pytest

from benchmarks.lookup import table_spec
from benchmarks.memories.far_memory import FarMemory
from memory_service import LocalMemory, Rows, ShardUnavailable, UnknownTable


@pytest.fixture
def near() -> Iterator[LocalMemory]:
    spec = table_spec(column_rows=100)
    packed = np.random.default_rng(0).integers(0, 255, (spec.rows, spec.row_bytes), np.uint8)
    with closing(LocalMemory({spec: packed})) as memory:
        yield memory


@pytest.mark.parametrize("delay_s", [0.0, 0.002])
def test_answers_are_those_of_the_memory_behind(near: LocalMemory, delay_s: float) -> None:
    asked = [np.arange(i, i + 5) for i in range(8)]
    with closing(FarMemory(near, delay_s)) as far:
        answers = [far.lookup("engram.1", ids) for ids in asked]
        for ids, answer in zip(asked, answers, strict=True):
            expected = near.lookup("engram.1", ids).result()
            np.testing.assert_array_equal(answer.result(10).unique, expected.unique)
            np.testing.assert_array_equal(answer.result(10).inverse, expected.inverse)
        assert far.specs == near.specs


def test_an_answer_is_not_there_at_once(near: LocalMemory) -> None:
    with closing(FarMemory(near, delay_s=60.0)) as far:
        assert not far.lookup("engram.1", np.arange(5)).done()


def test_failures_come_late_and_refusals_at_once(near: LocalMemory) -> None:
    class Failing(LocalMemory):
        def lookup(self, table: str, rows: np.ndarray, timeout_s: float | None = None) -> Future[Rows]:
            failed: Future[Rows] = Future()
            failed.set_exception(ShardUnavailable("gone"))
            return failed

    with closing(FarMemory(Failing({}), 0.002)) as far, pytest.raises(ShardUnavailable, match="gone"):
        far.lookup("engram.1", np.arange(5)).result(10)
    with closing(FarMemory(near, 0.002)) as far, pytest.raises(UnknownTable):
        far.lookup("engram.9", np.arange(5))
