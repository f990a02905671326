"""From tokens to memory rows: hash, ask the memory, decode where the model needs them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures import wait as wait_futures

import torch
from torch import Tensor

from kernels.row_unpack import row_unpack
from memory_service import DeadlineExceeded, Memory, MemoryServiceError, Rows, check_fingerprints
from memory_service.spec import TableSpec
from reasoning.hashing import NgramHasher

_GRACE_S = 0.5
"""How much longer than its own deadline a memory may take to report it."""


class RowLookup:
    """Asks a memory for the rows of one model's tokens."""

    def __init__(self, hasher: NgramHasher, specs: Sequence[TableSpec], memory: Memory, timeout_s: float):
        """Raise FingerprintMismatch or UnknownTable when the memory does not hold what the model reads."""
        check_fingerprints(memory, specs)
        self.hasher, self.memory = hasher, memory
        self.history_length = hasher.history_length
        self._specs = {spec.layer: spec for spec in specs}
        self.timeout_s = timeout_s

    def request(self, chunks: Sequence[list[int]], histories: Sequence[list[int]]) -> PendingRows:
        """Send the lookups of all layers, the first needed first; returns at once.

        A memory that refuses a lookup on the spot is a lookup that fails when its rows are needed.
        """
        rows = self.hasher.hash_batch(chunks, histories)
        return PendingRows(self, {layer: self._ask(spec, rows[layer]) for layer, spec in self._specs.items()})

    def _ask(self, spec: TableSpec, ids: object) -> Future[Rows]:
        try:
            return self.memory.lookup(spec.name, ids, self.timeout_s)  # type: ignore[arg-type]
        except MemoryServiceError as error:
            refused: Future[Rows] = Future()
            refused.set_exception(error)
            return refused

    def embed(self, layer: int, rows: Rows, positions: slice) -> Tensor:
        """Decode a layer's rows of some of the positions asked for, to [positions, C * D] fp32."""
        spec = self._specs[layer]
        unique, inverse = torch.from_numpy(rows.unique), torch.from_numpy(rows.inverse)
        return row_unpack(unique, inverse[positions], spec.row_format.value, spec.dim).flatten(1)


class PendingRows:
    """The rows of one lookup in all layers, on their way. Called with a layer it is that layer's rows, decoded."""

    def __init__(self, lookup: RowLookup, futures: dict[int, Future[Rows]]):
        self._lookup, self._futures = lookup, futures
        self.first_layer = min(futures)
        self.first = futures[self.first_layer]
        self.sent = time.perf_counter()
        self.latest = self.sent + lookup.timeout_s + _GRACE_S
        self._landed_at: dict[int, float] = {}
        for layer, future in futures.items():
            future.add_done_callback(lambda _, layer=layer: self._land(layer))  # type: ignore[misc]

    def _land(self, layer: int) -> None:
        self._landed_at[layer] = time.perf_counter()

    @property
    def landed(self) -> bool:
        """Whether the first layer that needs rows need not wait for them: they came, failed, or are overdue."""
        return self.first.done() or time.perf_counter() > self.latest

    @property
    def round_trip_s(self) -> float | None:
        """Time from sending to the first layer's rows in place; None while they travel."""
        landed = self._landed_at.get(self.first_layer)
        return None if landed is None else landed - self.sent

    @property
    def travels(self) -> dict[int, tuple[float, float]]:
        """Layer -> when it was asked for and when its rows were in place, for those that are."""
        return {layer: (self.sent, landed) for layer, landed in sorted(self._landed_at.items())}

    def wait_all(self) -> None:
        """Wait until no layer would have to."""
        wait_futures(self._futures.values(), timeout=max(0.0, self.latest - time.perf_counter()))

    def wait(self, layer: int) -> Rows:
        """Wait for a layer's rows, packed.

        Raises:
            MemoryServiceError: they do not come, or not in time.
        """
        try:
            return self._futures[layer].result(max(0.0, self.latest - time.perf_counter()))
        except FutureTimeout as error:
            raise DeadlineExceeded(
                f"the rows of layer {layer} did not come within {self._lookup.timeout_s} s; "
                "is the memory overloaded? A larger lookup_timeout_s waits longer"
            ) from error

    def __call__(self, layer: int) -> Tensor:
        """Return a layer's rows of all positions, decoded: [T, C * D] fp32. Raises like `wait`."""
        return self.embeddings(layer, slice(None))

    def embeddings(self, layer: int, positions: slice) -> Tensor:
        """Return a layer's rows of some of the positions, decoded: [positions, C * D] fp32. Raises like `wait`."""
        return self._lookup.embed(layer, self.wait(layer), positions)


def wait_any(pending: Iterable[PendingRows], until: float) -> None:
    """Wait until one of them has landed or is overdue, at most until a moment that `time.perf_counter` will reach."""
    some = list(pending)
    until = min(until, *(one.latest for one in some))
    futures = {one.first for one in some}
    wait_futures(futures, timeout=max(0.0, until - time.perf_counter()), return_when=FIRST_COMPLETED)
