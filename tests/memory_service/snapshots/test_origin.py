from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from memory_service import Snapshot, TableSpec, extend_snapshot, write_snapshot
from memory_service.snapshots.origin import Origin


@pytest.fixture
def spec(make_spec: Callable[..., TableSpec]) -> TableSpec:
    return make_spec()


@pytest.fixture
def rows(spec: TableSpec, make_packed: Callable[..., np.ndarray]) -> np.ndarray:
    return make_packed(spec)


def test_the_generation_begun_with_is_kept_to_while_it_is_there(
    tmp_path: Path, spec: TableSpec, rows: np.ndarray
) -> None:
    first = write_snapshot(tmp_path, {spec: rows})
    extend_snapshot(tmp_path, {spec: rows})
    assert Origin.of(first).present_uri() == first.uri


def test_the_newest_generation_with_the_same_rows_takes_the_place_of_one_that_was_deleted(
    tmp_path: Path, spec: TableSpec, rows: np.ndarray
) -> None:
    origin = Origin.of(write_snapshot(tmp_path, {spec: rows}))
    for content, version in ((rows, 0), (rows, 0), (~rows, 1), (rows, 2)):
        extend_snapshot(tmp_path, {spec: content}, version)
    (tmp_path / "manifest.json").unlink()
    assert origin.present_uri() == Snapshot.open(f"{tmp_path}?generation=2").uri


def test_rows_that_are_nowhere_are_asked_for_where_they_were(
    tmp_path: Path, spec: TableSpec, rows: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    first = write_snapshot(tmp_path, {spec: rows})
    extend_snapshot(tmp_path, {spec: ~rows}, version=1)
    (tmp_path / "manifest.json").unlink()
    assert Origin.of(first).present_uri() == first.uri
    assert "was deleted, and no generation of [1] has the same rows" in caplog.text
