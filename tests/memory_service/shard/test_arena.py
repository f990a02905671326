from __future__ import annotations

import os

import numpy as np
import pytest

from memory_service.errors import OutOfMemory
from memory_service.shard.arena import Arena

MIB = 1 << 20


def resident(arena: Arena) -> int:
    assert arena.fd is not None
    return os.fstat(arena.fd).st_blocks * 512


def test_the_lowest_free_slot_is_handed_out() -> None:
    arena = Arena(5, 16, 100)
    assert [arena.take() for _ in range(4)] == [0, 1, 2, 3]
    arena.give_back([2, 0])
    assert [arena.take() for _ in range(3)] == [0, 2, 4]


def test_slots_of_an_arena_do_not_overlap() -> None:
    arena = Arena(3, 16, 100)
    for slot in range(3):
        arena.slot(arena.take())[:] = slot
    arena.give_back([1])
    arena.slot(arena.take())[:] = 7
    assert arena.rows[:, 0].tolist() == [0] * 16 + [7] * 16 + [2] * 16


def test_memory_is_used_for_taken_slots_only() -> None:
    arena = Arena(1 << 20, 4096, 256, shared=True)  # a TiB of address space
    assert (arena.nbytes, resident(arena)) == (0, 0)
    for _ in range(3):
        arena.slot(arena.take())[:] = 1
    assert arena.nbytes == resident(arena) == 3 * MIB
    arena.give_back([0, 1])
    assert arena.nbytes == resident(arena) == MIB
    assert arena.slot(2).all()


def test_another_mapping_of_the_memfd_sees_the_rows() -> None:
    arena = Arena(1, 16, 100, shared=True)
    arena.slot(arena.take())[:] = 9
    assert arena.fd is not None
    assert os.pread(arena.fd, 1600, 0) == bytes([9]) * 1600


@pytest.mark.parametrize("shared", [False, True])
def test_anonymous_memory_unless_shared_and_a_memfd_can_be_had(monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    if shared:
        monkeypatch.delattr(os, "memfd_create")
    arena = Arena(3, 4096, 10, shared)
    for value in (1, 2):
        arena.slot(arena.take())[:] = value
    arena.give_back([0])
    assert arena.fd is None
    assert np.unique(arena.slot(1)).tolist() == [2]


def test_too_little_memory_for_a_slot_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutOfMemory, match=r"GiB for table blocks: add shards or memory"):
        Arena(1 << 36, 4096, 4096)
    with pytest.raises(OutOfMemory, match=r"GiB for table blocks"):
        Arena(1 << 48, 4096, 4096)

    def full(*_: int) -> None:
        raise OSError("no space left")

    arena = Arena(3, 4096, 256, shared=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OutOfMemory, match="no space left"):
            arena.take()
    assert arena.nbytes == 0
    assert arena.take() == 0


def test_the_descriptor_is_closed_with_the_arena() -> None:
    arena = Arena(1, 16, 100, shared=True)
    fd = arena.fd
    assert fd is not None
    del arena
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
