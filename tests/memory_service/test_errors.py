from __future__ import annotations

import pickle

import pytest

from memory_service import errors
from memory_service.errors import DeadlineExceeded, MemoryServiceError, ShardUnavailable, UnknownTable
from memory_service.protocol.status import error_of, status_of


def all_errors() -> list[type[MemoryServiceError]]:
    found = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MemoryServiceError)]
    return [kind for kind in found if kind not in (MemoryServiceError, errors.ShardError)]


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_crosses_the_wire_as_itself(kind: type[MemoryServiceError]) -> None:
    status, _ = status_of(kind("what happened"))
    back = error_of(status, "what happened")
    assert type(back) is kind
    assert str(back) == "what happened"


@pytest.mark.parametrize("kind", [ShardUnavailable, DeadlineExceeded])
def test_errors_keep_their_fields_between_processes(kind: type[errors.ShardError]) -> None:
    back = pickle.loads(pickle.dumps(kind("gone", "engram.1", "shard-2", 7)))
    assert (str(back), back.table, back.shard, back.epoch) == ("gone", "engram.1", "shard-2", 7)


def test_an_unknown_status_is_still_an_error() -> None:
    assert type(error_of(99, "news")) is MemoryServiceError
    assert str(pickle.loads(pickle.dumps(UnknownTable("no table")))) == "no table"
