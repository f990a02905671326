from __future__ import annotations

import threading

import numpy as np

from memory_service.shard.scratch import Scratch


def address(rows: np.ndarray) -> int:
    return rows.__array_interface__["data"][0]


def test_memory_is_used_again_once_nobody_holds_it() -> None:
    scratch = Scratch()
    first = scratch.rows(10, 8)
    where = address(first)
    del first
    second = scratch.rows(5, 8)
    assert second.shape == (5, 8)
    assert address(second) == where


def test_memory_that_somebody_holds_is_left_alone() -> None:
    scratch = Scratch()
    first = scratch.rows(10, 8)
    first[:] = 1
    view = memoryview(first)[2:]
    del first
    scratch.rows(10, 8)[:] = 2
    assert set(view.tobytes()) == {1}


def test_a_larger_one_is_given_more() -> None:
    scratch = Scratch()
    scratch.rows(1, 8)
    assert scratch.rows(1000, 8).nbytes == 8000
    assert scratch.rows(0, 8).shape == (0, 8)
    assert scratch.rows(1 << 20, 100).nbytes == 100 << 20


def test_threads_do_not_share_a_scratch_buffer() -> None:
    scratch, other = Scratch(), []
    mine = address(scratch.rows(10, 8))
    thread = threading.Thread(target=lambda: other.append(address(scratch.rows(10, 8))))
    thread.start()
    thread.join()
    assert other != [mine]
