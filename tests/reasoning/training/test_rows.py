"""The rows of a step: requested once, expanded to positions, their gradients summed and pushed in the last part."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np
import pytest
import torch

from memory_service import InvalidRequest, LocalMemory, ShardUnavailable
from memory_service.tables.rows import RowFormat, pack_rows
from memory_service.tables.spec import TableSpec
from reasoning.training.rows import FrozenTables, StepRows

DIM, LAYERS = 32, (1, 4)


def spec(layer, row_format="fp32"):
    return TableSpec(
        name=f"engram.{layer}", layer=layer, column_rows=(11, 13, 17, 19), max_ngram=3, heads=2, multipliers=(1, 3, 5),
        pad_id=0, token_map_sha256="0" * 64, dim=DIM, row_format=RowFormat(row_format), block_rows=16,
    )  # fmt: skip


SPECS = {layer: spec(layer) for layer in LAYERS}


def table(layer):
    return np.random.default_rng(layer).standard_normal((60, DIM)).astype(np.float32)


def done(value=None):
    future: Future = Future()
    future.set_result(value)
    return future


class Tables:
    """Tables that remember what they were asked and given."""

    def __init__(self, row_format="fp32", error=None):
        self.specs = {each.name: each for each in (spec(layer, row_format) for layer in LAYERS)}
        packed = {each: pack_rows(table(each.layer), each.row_format) for each in self.specs.values()}
        self.memory, self.error = LocalMemory(packed), error
        self.asked, self.pushed = [], {}

    def lookup(self, name, rows, step):
        self.asked.append((name, rows.tolist(), step))
        return self.memory.lookup(name, rows)

    def push(self, step, name, rows, gradients, rate):
        if self.error is not None:
            raise self.error
        assert name not in self.pushed, "pushed once"
        self.pushed[name] = step, rows, gradients, rate
        return done()


def step_rows(tables, ids, committed=None, step=7):
    specs = {each.layer: each for each in tables.specs.values()}
    return StepRows(tables, specs, ids, step, committed or done(), torch.device("cpu"))


def ids(seed, positions=9):
    rng = np.random.default_rng(seed)
    return {layer: rng.integers(0, 60, (positions, 4)) for layer in LAYERS}


@pytest.mark.parametrize("row_format", ["fp32", "bf16"])
def test_rows_are_laid_end_to_end(row_format):
    wanted = ids(0)
    source = step_rows(Tables(row_format), wanted).part(slice(None), None)
    for layer in LAYERS:
        expected = torch.from_numpy(table(layer))
        expected = expected.bfloat16().float() if row_format == "bf16" else expected
        assert torch.equal(source(layer).detach(), expected[wanted[layer]].flatten(1))


def test_each_row_is_asked_for_once_as_it_was_after_the_step_before():
    tables = Tables()
    rows = step_rows(tables, {1: np.array([[5, 7, 5, 5], [7, 5, 2, 2]])})
    for _ in range(2):
        rows.part(slice(None), None)(1)
    assert tables.asked == [("engram.1", [2, 5, 7], 6)]


def test_rows_are_asked_for_as_soon_as_the_step_before_is_committed():
    tables, committed = Tables(), Future()
    rows = step_rows(tables, ids(0), committed)
    assert tables.asked == []
    committed.set_result(None)
    assert [name for name, _, _ in tables.asked] == ["engram.1", "engram.4"]
    assert rows.part(slice(None), None)(1).shape == (9, 4 * DIM)


def test_a_commit_that_failed_fails_the_rows_that_waited_for_it():
    committed: Future = Future()
    rows = step_rows(Tables(), ids(0), committed)
    committed.set_exception(ShardUnavailable("gone", shard="shard-1"))
    with pytest.raises(ShardUnavailable, match="gone"):
        rows.part(slice(None), None)(4)


def test_gradients_of_shared_rows_are_summed_over_all_parts_and_pushed_with_the_last():
    tables = Tables()
    rows = step_rows(tables, {1: np.array([[5, 7, 5, 5], [7, 5, 2, 2]])})
    weights = torch.arange(1.0, 9.0).repeat_interleave(DIM).view(2, -1)
    (rows.part(slice(0, 1), None)(1) * weights[:1]).sum().backward()
    assert tables.pushed == {}
    (rows.part(slice(1, 2), 0.5)(1) * weights[1:]).sum().backward()
    step, unique, gradients, rate = tables.pushed["engram.1"]
    assert (step, unique.tolist(), rate) == (7, [2, 5, 7], 0.5)
    assert gradients.dtype == np.float32
    assert np.array_equal(gradients, np.repeat([[7 + 8], [1 + 3 + 4 + 6], [2 + 5]], DIM, axis=1))
    rows.wait_pushed()


def test_gradients_by_row_are_the_same_by_kernels(by_torch_and_by_kernels):
    def gradients():
        tables = Tables()
        source = step_rows(tables, ids(0, positions=123)).part(slice(None), 0.5)
        (torch.tanh(source(1)) * source(4)).square().sum().backward()
        return tables.pushed

    expected, got = by_torch_and_by_kernels(gradients)
    assert sorted(got) == ["engram.1", "engram.4"]
    for name in got:
        assert np.array_equal(got[name][1], expected[name][1])
        np.testing.assert_allclose(got[name][2], expected[name][2], rtol=1e-5, atol=1e-6)


def test_gradients_that_are_refused_fail_the_step_and_not_the_backward_pass():
    rows = step_rows(Tables(error=InvalidRequest("not finite")), ids(0))
    (rows.part(slice(None), 0.5)(1)).sum().backward()
    with pytest.raises(InvalidRequest, match="not finite"):
        rows.wait_pushed()


def test_frozen_tables_have_no_norm_and_take_no_gradients():
    tables = Tables()
    frozen = FrozenTables(tables.memory)
    assert frozen.squared_norm(1).result() == 0.0
    assert frozen.commit(1, 0.5).result() is None
    rows = step_rows(frozen, ids(0))
    assert not rows.part(slice(None), 0.5)(1).requires_grad
    with pytest.raises(AssertionError, match="frozen tables have no gradients"):
        frozen.push(1, "engram.1", np.zeros(0), np.zeros((0, DIM)), 0.1)
