"""Copy rows to the model's device on a separate stream, as soon as they arrive on the host."""

from __future__ import annotations

from concurrent.futures import Future

import torch
from torch import Tensor

from memory_service import Rows
from reasoning.model.devices import to_device


class StagedRows:
    """Packed rows of one lookup on the model's device, or being copied there."""

    def __init__(self, unique: Tensor, inverse: Tensor, copied: torch.cuda.Event | None = None):
        """Hold rows; `copied` is the event after which both tensors are complete, None if they already are."""
        self._unique, self._inverse, self._copied = unique, inverse, copied

    def take(self) -> tuple[Tensor, Tensor]:
        """Return distinct rows [U, row_bytes] uint8 and the index [..., C] into them.

        The current stream waits for them, the host does not. Their memory is reused only after the work that is queued
        on the current stream when they are dropped.
        """
        if self._copied is not None:
            stream = torch.cuda.current_stream(self._unique.device)
            stream.wait_event(self._copied)
            self._unique.record_stream(stream)  # they belong to the staging stream, which would not wait for this one
            self._inverse.record_stream(stream)
        return self._unique, self._inverse


class Staging:
    """Brings rows to one device. On a CPU nothing is copied.

    The copy is started by the memory's receiving thread: when a layer needs the rows, it is done or running beside
    what the device computes.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def follow(self, rows: Future[Rows]) -> Future[StagedRows]:
        """Stage rows when they arrive; an error of the lookup is passed on."""
        staged: Future[StagedRows] = Future()

        def land(done: Future[Rows]) -> None:
            try:
                staged.set_result(self.stage(done.result()))
            except BaseException as error:
                staged.set_exception(error)

        rows.add_done_callback(land)
        return staged

    def stage(self, rows: Rows) -> StagedRows:
        """Start copying rows."""
        if self._stream is None:
            return StagedRows(torch.as_tensor(rows.unique), torch.as_tensor(rows.inverse))
        copied = torch.cuda.Event()
        with torch.cuda.stream(self._stream):
            unique, inverse = self._copy(rows.unique), self._copy(rows.inverse)
            copied.record()
        return StagedRows(unique, inverse, copied)

    def _copy(self, array: object) -> Tensor:
        """Copy an array of the host; tensors of a memory that keeps its rows on the device stay where they are."""
        tensor = torch.as_tensor(array)
        return tensor if tensor.is_cuda else to_device(tensor, self._device)
