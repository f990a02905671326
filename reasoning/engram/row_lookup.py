"""From tokens to memory rows: hash, look up, decode where the model needs them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures import wait as wait_futures

import torch
from torch import Tensor

from kernels.row_unpack import row_unpack
from memory_service import DeadlineExceeded, Memory, MemoryServiceError, check_fingerprints
from memory_service.tables.spec import TableSpec
from reasoning.engram.hashing import NgramHasher
from reasoning.engram.staging import StagedRows, Staging

_GRACE_S = 0.5
"""Seconds that a memory may take to report an expired deadline."""
_CPU = torch.device("cpu")


class RowLookup:
    """Requests the rows of one model's tokens from a memory."""

    def __init__(
        self,
        hasher: NgramHasher,
        specs: Sequence[TableSpec],
        memory: Memory,
        timeout_s: float,
        device: torch.device = _CPU,
        dtype: torch.dtype = torch.float32,
    ):
        """Look up rows for a model on `device` that computes in `dtype`.

        Raises:
            MemoryServiceError: the memory lacks the model's tables (FingerprintMismatch, UnknownTable).
        """
        check_fingerprints(memory, specs)
        self.hasher, self.memory = hasher, memory
        self.history_length = hasher.history_length
        self._specs = {spec.layer: spec for spec in specs}
        self.timeout_s = timeout_s
        self._staging, self._dtype = Staging(device), dtype

    def request(self, chunks: Sequence[list[int]], histories: Sequence[list[int]]) -> PendingRows:
        """Send the lookups of all layers, in the order in which the layers run; returns at once.

        A lookup that the memory refuses immediately fails when its rows are needed, like any other.

        Args:
            chunks: token ids whose rows are needed.
            histories: the tokens before each chunk, as many as `history_length`, or fewer at a sequence's start.
        """
        rows = self.hasher.hash_batch(chunks, histories)
        return PendingRows(self, {layer: self._ask(spec, rows[layer]) for layer, spec in self._specs.items()})

    def _ask(self, spec: TableSpec, ids: object) -> Future[StagedRows]:
        try:
            return self._staging.follow(self.memory.lookup(spec.name, ids, self.timeout_s))  # type: ignore[arg-type]
        except MemoryServiceError as error:
            refused: Future[StagedRows] = Future()
            refused.set_exception(error)
            return refused

    def embed(self, layer: int, rows: StagedRows, positions: slice) -> Tensor:
        """Decode the rows of some positions of a lookup to [positions, C * D] in the model's dtype."""
        spec = self._specs[layer]
        unique, inverse = rows.take()
        return row_unpack(unique, inverse[positions], spec.row_format.value, spec.dim, self._dtype).flatten(1)


class PendingRows:
    """The rows of one lookup in all layers, while they travel. Calling it with a layer returns that layer's rows."""

    def __init__(self, lookup: RowLookup, futures: dict[int, Future[StagedRows]]):
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
        """Whether the first Engram layer can go on without waiting: its rows arrived, failed, or are overdue."""
        return self.first.done() or time.perf_counter() > self.latest

    @property
    def round_trip_s(self) -> float | None:
        """Seconds from sending to the arrival of the first layer's rows; None while they travel."""
        landed = self._landed_at.get(self.first_layer)
        return None if landed is None else landed - self.sent

    @property
    def travels(self) -> dict[int, tuple[float, float]]:
        """Layer -> when its rows were requested and when they arrived, for layers whose rows did."""
        return {layer: (self.sent, landed) for layer, landed in sorted(self._landed_at.items())}

    def wait_all(self) -> None:
        """Wait until the rows of all layers have arrived, failed, or are overdue."""
        wait_futures(self._futures.values(), timeout=max(0.0, self.latest - time.perf_counter()))

    def wait(self, layer: int) -> StagedRows:
        """Wait for a layer's packed rows to arrive; the device may still be copying them.

        Raises:
            MemoryServiceError: they do not arrive, or not in time.
        """
        try:
            return self._futures[layer].result(max(0.0, self.latest - time.perf_counter()))
        except FutureTimeout as error:
            raise DeadlineExceeded(
                f"the rows of layer {layer} did not come within {self._lookup.timeout_s} s; "
                "is the memory overloaded? A larger lookup_timeout_s waits longer"
            ) from error

    def __call__(self, layer: int) -> Tensor:
        """Return a layer's rows of all positions, decoded: [T, C * D]. Raises like `wait`."""
        return self.embeddings(layer, slice(None))

    def embeddings(self, layer: int, positions: slice) -> Tensor:
        """Return a layer's rows of some of the positions, decoded: [positions, C * D]. Raises like `wait`."""
        return self._lookup.embed(layer, self.wait(layer), positions)


def wait_any(pending: Iterable[PendingRows], until: float) -> None:
    """Wait until any lookup has landed or is overdue, at most until `time.perf_counter` reaches `until`."""
    lookups = list(pending)
    until = min(until, *(rows.latest for rows in lookups))
    futures = {rows.first for rows in lookups}
    wait_futures(futures, timeout=max(0.0, until - time.perf_counter()), return_when=FIRST_COMPLETED)
