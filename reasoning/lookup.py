"""From a batch's tokens to its memory rows: hash, ask the memory, decode where the model needs them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

import torch
from torch import Tensor

from kernels.row_unpack import row_unpack
from memory_service import DeadlineExceeded, Memory, Rows, check_fingerprints
from memory_service.spec import TableSpec
from reasoning.hashing import NgramHasher

_GRACE_S = 0.5
"""How much longer than its own deadline a memory may take to report it."""


class RowLookup:
    """Asks a memory for the rows of batches of one model."""

    def __init__(self, hasher: NgramHasher, specs: Sequence[TableSpec], memory: Memory, timeout_s: float):
        """Raise FingerprintMismatch or UnknownTable when the memory does not hold what the model reads."""
        check_fingerprints(memory, specs)
        self.hasher, self.memory = hasher, memory
        self.history_length = hasher.history_length
        self._specs = {spec.layer: spec for spec in specs}
        self.timeout_s = timeout_s
        self.waited_s = 0.0

    def request(self, chunks: Sequence[list[int]], histories: Sequence[list[int]]) -> PendingRows:
        """Send the lookups of all layers, the first needed first; returns at once."""
        rows = self.hasher.hash_batch(chunks, histories)
        futures = {
            layer: self.memory.lookup(spec.name, rows[layer], self.timeout_s) for layer, spec in self._specs.items()
        }
        return PendingRows(self, futures)

    def embed(self, layer: int, rows: Rows) -> Tensor:
        """Decode a layer's rows to [T, C * D] fp32."""
        spec = self._specs[layer]
        unique, inverse = torch.from_numpy(rows.unique), torch.from_numpy(rows.inverse)
        return row_unpack(unique, inverse, spec.row_format.value, spec.dim).flatten(1)


class PendingRows:
    """The rows of one batch, on their way. Calling it with a layer waits for that layer's rows."""

    def __init__(self, lookup: RowLookup, futures: dict[int, Future[Rows]]):
        self._lookup, self._futures = lookup, futures
        self._latest = time.perf_counter() + lookup.timeout_s + _GRACE_S

    def __call__(self, layer: int) -> Tensor:
        """Return the layer's embeddings, [T, C * D]; raises MemoryServiceError when they do not come in time."""
        begin = time.perf_counter()
        try:
            rows = self._futures[layer].result(max(0.0, self._latest - begin))
        except FutureTimeout as error:
            raise DeadlineExceeded(
                f"the rows of layer {layer} did not come within {self._lookup.timeout_s} s; "
                "is the memory overloaded? A larger lookup_timeout_s waits longer"
            ) from error
        finally:
            self._lookup.waited_s += time.perf_counter() - begin
        return self._lookup.embed(layer, rows)
