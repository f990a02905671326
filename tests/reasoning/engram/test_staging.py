"""Rows reach the device: on a CPU as they are; on a GPU, played by a recorder, in an order that loses none."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from memory_service import Rows, ShardUnavailable
from reasoning.engram import staging
from reasoning.engram.staging import StagedRows, Staging

ROWS = Rows(np.arange(12, dtype=np.uint8).reshape(4, 3), np.array([[3, 0], [1, 1]]))


def test_on_a_cpu_rows_are_taken_without_a_copy():
    unique, inverse = Staging(torch.device("cpu")).stage(ROWS).take()
    assert unique.data_ptr() == ROWS.unique.ctypes.data
    assert inverse.tolist() == ROWS.inverse.tolist()


def test_what_becomes_of_rows_is_handed_on():
    landed, lost = Future(), Future()
    follow = Staging(torch.device("cpu")).follow
    staged, failed = follow(landed), follow(lost)
    assert not staged.done()
    landed.set_result(ROWS)
    lost.set_exception(ShardUnavailable("gone"))
    assert isinstance(staged.result(0), StagedRows)
    with pytest.raises(ShardUnavailable, match="gone"):
        failed.result(0)


class Gpu:
    """Stands in for `torch.cuda` and writes down what it is told, with the stream that is current."""

    def __init__(self):
        self.log, self.current = [], "compute"
        self.Stream = lambda device: "staging"
        self.Event = lambda: self

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def current_stream(self, device):
        return self

    def record(self):
        self.log.append(("event", self.current))

    def wait_event(self, event):
        self.log.append(("wait", self.current))


class OnDevice:
    """A tensor there."""

    device = torch.device("cuda")

    def __init__(self, gpu):
        self.gpu = gpu

    def record_stream(self, stream):
        self.gpu.log.append(("kept for", stream.current))


def test_on_a_gpu_the_compute_stream_waits_for_the_copies_and_keeps_their_memory(monkeypatch):
    gpu = Gpu()

    def copy(host, device):
        gpu.log.append(("copy", gpu.current))
        return OnDevice(gpu)

    monkeypatch.setattr(staging.torch, "cuda", gpu)
    monkeypatch.setattr(staging, "to_device", copy)
    staged = Staging(torch.device("cuda")).stage(ROWS)
    assert gpu.log == [("copy", "staging"), ("copy", "staging"), ("event", "staging")]
    gpu.log.clear()
    staged.take()
    assert gpu.log == [("wait", "compute"), ("kept for", "compute"), ("kept for", "compute")]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_rows_arrive_on_a_gpu():
    unique, inverse = Staging(torch.device("cuda")).stage(ROWS).take()
    assert unique.is_cuda
    assert unique[inverse].tolist() == ROWS.unique[ROWS.inverse].tolist()
