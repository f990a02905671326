"""The rows of one training step: requested early, leaves of the autograd graph, and their gradients pushed at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.row_unpack import row_expand, row_unpack
from memory_service import Memory, MemoryServiceError, Rows
from memory_service.tables.spec import TableSpec
from memory_service.training.memory import LearningMemory


class FrozenTables:
    """Tables that are read and take no gradients, as a LearningMemory."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.specs = memory.specs

    def lookup(self, table: str, rows: np.ndarray, step: int) -> Future[Rows]:
        """Request rows; every step finds the same."""
        return self._memory.lookup(table, rows)

    def push(self, step: int, table: str, rows: np.ndarray, gradients: np.ndarray, rate: float) -> Future[None]:
        """Take no gradients: StepRows has none to give."""
        raise AssertionError("frozen tables have no gradients")

    def squared_norm(self, step: int) -> Future[float]:
        """No gradients, no norm."""
        return _done(0.0)

    def commit(self, step: int, scale: float) -> Future[None]:
        """Nothing to apply."""
        return _done(None)

    def close(self) -> None:
        """Release the memory."""
        self._memory.close()


class StepRows:
    """The rows that one worker needs in one step. Lookups are sent as soon as the step before is committed."""

    def __init__(
        self,
        memory: LearningMemory,
        specs: Mapping[int, TableSpec],
        ids: Mapping[int, np.ndarray],
        step: int,
        committed: Future[None],
        device: torch.device,
    ) -> None:
        """Request rows.

        Args:
            memory: where the tables are.
            specs: the tables by layer.
            ids: row ids by layer, [T, C], of all parts of the step end to end.
            step: number of the step, from 1; rows are read as they are after the step before.
            committed: done once the step before is applied.
            device: where the model is.
        """
        self._memory, self._specs, self._step, self._device = memory, specs, step, device
        self._unique: dict[int, np.ndarray] = {}
        self._inverse: dict[int, Tensor] = {}
        self._rows: dict[int, Future[Rows]] = {}
        self._leaves: dict[int, Tensor] = {}
        self._pushes: list[Future[None]] = []
        self._pushing: set[int] = set()  # layers whose gradients will be pushed
        self.waited_s = 0.0
        """Seconds that the model has waited for rows."""
        for layer, wanted in ids.items():
            unique, inverse = np.unique(wanted, return_inverse=True)
            self._unique[layer] = unique
            self._inverse[layer] = torch.from_numpy(inverse.reshape(wanted.shape)).to(device)
            self._rows[layer] = _after(committed, lambda layer=layer: self._look_up(layer))  # type: ignore[misc]

    def part(self, positions: slice, push_at: float | None) -> Callable[[int], Tensor]:
        """Return the source of rows of some positions.

        Args:
            positions: those of the part.
            push_at: learning rate at which the gradients are pushed once the backward pass of this part, the last of
                the step, has reached a layer; None for parts before the last, or for rows without gradients.
        """

        def rows(layer: int) -> Tensor:
            leaf = self._leaf(layer)
            if push_at is not None and leaf.requires_grad and layer not in self._pushing:
                self._pushing.add(layer)
                leaf.register_post_accumulate_grad_hook(lambda _: self._push(layer, push_at))
            return row_expand(leaf, self._inverse[layer][positions]).flatten(1)

        return rows

    def wait_pushed(self) -> None:
        """Wait until all gradients have been taken.

        Raises:
            MemoryServiceError: gradients were refused, or a shard is out of reach.
        """
        for push in self._pushes:
            push.result()

    def _look_up(self, layer: int) -> Future[Rows]:
        return self._memory.lookup(self._specs[layer].name, self._unique[layer], self._step - 1)

    def _leaf(self, layer: int) -> Tensor:
        if layer not in self._leaves:
            began, spec = time.perf_counter(), self._specs[layer]
            found = self._rows[layer].result()
            self.waited_s += time.perf_counter() - began
            unique, inverse = torch.as_tensor(found.unique), torch.as_tensor(found.inverse)
            unpacked = row_unpack(unique.to(self._device), inverse.to(self._device), spec.row_format.value, spec.dim)
            learns = not isinstance(self._memory, FrozenTables)
            self._leaves[layer] = unpacked.detach().requires_grad_(learns and torch.is_grad_enabled())
        return self._leaves[layer]

    def _push(self, layer: int, rate: float) -> None:
        gradient = self._leaves[layer].grad
        assert gradient is not None, f"layer {layer}: the hook runs once there is a gradient"
        values = gradient.float().cpu().numpy()
        name = self._specs[layer].name
        try:
            self._pushes.append(self._memory.push(self._step, name, self._unique[layer], values, rate))
        except MemoryServiceError as error:
            self._pushes.append(_failed(error))


def _after(before: Future[None], call: Callable[[], Future[Rows]]) -> Future[Rows]:
    """A future of a call that is made once another future is done, in the thread that ends it; errors are passed on."""
    whole: Future[Rows] = Future()

    def begin(done: Future[None]) -> None:
        try:
            done.result()
            call().add_done_callback(end)
        except BaseException as error:
            whole.set_exception(error)

    def end(done: Future[Rows]) -> None:
        error = done.exception()
        if error is None:
            whole.set_result(done.result())
        else:
            whole.set_exception(error)

    before.add_done_callback(begin)
    return whole


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def _failed(error: Exception) -> Future[None]:
    future: Future[None] = Future()
    future.set_exception(error)
    return future
