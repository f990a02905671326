"""Rows on their last stretch: to the device, by a stream of their own, as soon as they have landed on the host."""

from __future__ import annotations

from concurrent.futures import Future

import torch
from torch import Tensor

from memory_service import Rows
from reasoning.model.devices import to_device


class StagedRows:
    """Packed rows of one lookup where the model runs, or on their way there."""

    def __init__(self, unique: Tensor, inverse: Tensor, copied: torch.cuda.Event | None = None):
        """`copied` happens once both tensors are written; None if they are."""
        self._unique, self._inverse, self._copied = unique, inverse, copied

    def take(self) -> tuple[Tensor, Tensor]:
        """Return distinct rows [U, row_bytes] uint8 and the index [..., C] into them.

        The current stream waits for them, the host does not. Their memory is given out anew only after what the
        current stream has been told to do by the time they are dropped.
        """
        if self._copied is not None:
            stream = torch.cuda.current_stream(self._unique.device)
            stream.wait_event(self._copied)
            self._unique.record_stream(stream)  # they belong to the staging stream, which would not wait for this one
            self._inverse.record_stream(stream)
        return self._unique, self._inverse


class Staging:
    """Brings rows to one device. On a CPU they are there once they land.

    Rows land in whatever thread of the memory receives them, and the copy is begun there: by the time that a layer
    needs them it is done, or on its way beside what the device computes.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def follow(self, rows: Future[Rows]) -> Future[StagedRows]:
        """Stage rows when they land; an error of theirs is handed on."""
        staged: Future[StagedRows] = Future()

        def land(done: Future[Rows]) -> None:
            try:
                staged.set_result(self.stage(done.result()))
            except BaseException as error:
                staged.set_exception(error)

        rows.add_done_callback(land)
        return staged

    def stage(self, rows: Rows) -> StagedRows:
        """Begin to copy rows."""
        if self._stream is None:
            return StagedRows(torch.as_tensor(rows.unique), torch.as_tensor(rows.inverse))
        copied = torch.cuda.Event()
        with torch.cuda.stream(self._stream):
            unique, inverse = self._copy(rows.unique), self._copy(rows.inverse)
            copied.record()
        return StagedRows(unique, inverse, copied)

    def _copy(self, array: object) -> Tensor:
        """A memory that keeps its rows on the device hands out tensors there, which stay where they are."""
        tensor = torch.as_tensor(array)
        return tensor if tensor.is_cuda else to_device(tensor, self._device)
