from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from memory_service import FingerprintMismatch, LocalMemory
from reasoning.engine import Engine
from reasoning.request import Request, SamplingParams

PROMPT = Request("1", "x" * 60, sampling=SamplingParams(max_new_tokens=3, ignore_eos=True))


class Closing(LocalMemory):
    """A memory that remembers whether it was closed."""

    closed = False

    def close(self):
        self.closed = True


@pytest.fixture
def engine(tiny_dir):
    with_memory = Engine.from_pretrained(tiny_dir, Closing.load(tiny_dir / "memory"))
    yield with_memory
    with_memory.close()


def answer(engine):
    [result] = engine.generate([PROMPT])
    return result.token_ids


def test_an_engine_goes_on_with_another_memory_of_the_same_tables(engine, tiny_dir):
    before, first = engine.memory, answer(engine)
    second = Closing.load(tiny_dir / "memory")
    engine.reconnect(second)
    assert before.closed
    assert answer(engine) == first
    assert engine.memory is second
    assert engine.stats().memory.lookups == second.stats().lookups > 0
    assert engine.stats().output_tokens == 2 * len(first)


def test_a_memory_of_other_tables_is_refused_and_the_old_one_stays(engine):
    first, memory = answer(engine), engine.memory
    other = LocalMemory({spec: np.zeros((spec.rows, spec.row_bytes), np.uint8) for spec in foreign(memory.specs)})
    with pytest.raises(FingerprintMismatch):
        engine.reconnect(other)
    assert not memory.closed
    assert answer(engine) == first


def foreign(specs):
    """The same tables, hashed by another token map."""
    return [dataclasses.replace(spec, token_map_sha256="0" * 64) for spec in specs.values()]
