"""The short form of the fuzzing of both doors; `python -m benchmarks.fuzz` is the long one."""

from __future__ import annotations

import os
import random
import signal

import pytest

from benchmarks import fuzz
from benchmarks.faults.mutations import edit_field, encode_field, mutate, parse_fields, reorder


@pytest.mark.slow
def test_two_thousand_hostile_requests_leave_a_shard_as_it_was():
    outcome = fuzz.fuzz(2000, seed=7)
    assert outcome.requests == 2000
    assert outcome.checks == 9
    # They got somewhere: some were obeyed, some refused by our own checks and by gRPC; none met an error of ours.
    refusals = {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED"}
    assert outcome.codes.keys() >= {"OK", "bytes", *refusals}
    assert not outcome.codes.keys() & {"UNKNOWN", "INTERNAL"}


@pytest.mark.slow
def test_a_shard_that_falls_is_noticed(monkeypatch: pytest.MonkeyPatch):
    def deadly(self: fuzz._Siege, *_: object) -> str:
        os.kill(self._process.pid, signal.SIGKILL)
        return "killed"

    monkeypatch.setattr(fuzz._Siege, "_send", deadly)
    with pytest.raises(fuzz.SiegeError, match=r"a proper lookup failed.*exit code -9.* after 3 requests"):
        fuzz.fuzz(3, seed=0)


def test_the_same_seed_does_the_same_damage():
    data = b"".join(
        encode_field(number, value) for number, value in [(1, 7), (2, b"text"), (3, encode_field(1, 1 << 40))]
    )
    first, second = ([mutate(rng, data, [data]) for _ in range(500)] for rng in (random.Random(3), random.Random(3)))
    assert first == second
    assert len(set(first)) > 400
    assert reorder(random.Random(1), [b"a", b"b", b"c"]) == reorder(random.Random(1), [b"a", b"b", b"c"])


def test_fields_survive_being_parsed_and_edited():
    fields = [(1, 300), (2, b""), (1000, bytes(200)), (7, (1 << 64) - 1)]
    data = b"".join(encode_field(*field) for field in fields)
    assert parse_fields(data) == fields
    for seed in range(200):
        edit_field(random.Random(seed), data)
    with pytest.raises(ValueError, match="ends within"):
        parse_fields(data[:-1])
