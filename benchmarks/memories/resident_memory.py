"""Tables in device memory, or in page-locked host memory that the device reads by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

from benchmarks.memories.random_rows import fill_table, random_blocks
from kernels.dispatch import use_triton
from memory_service import MemoryStats, Rows, TableSpec
from memory_service.client.counters import LookupCounters
from memory_service.memory import require_table
from memory_service.metrics.metrics import Sample
from reasoning.model.devices import to_device


class ResidentMemory:
    """A memory whose lookups are gathers by the device. It returns tensors, so rows stay on the device.

    The host hashes for it as for every memory, so that places differ only in where their rows lie.
    """

    def __init__(self, tables: Mapping[TableSpec, Tensor], device: torch.device) -> None:
        """`tables` are uint8 [rows, row_bytes], on `device` or page-locked."""
        self.specs: Mapping[str, TableSpec] = {spec.name: spec for spec in tables}
        self._tables = {spec.name: table for spec, table in tables.items()}
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._counters = LookupCounters()
        self._thread = ThreadPoolExecutor(1, "resident-memory")

    def lookup(self, table: str, rows: np.ndarray, timeout_s: float | None = None) -> Future[Rows]:
        """See Memory.lookup; there is no deadline, as only the device is waited for."""
        return self._thread.submit(self._lookup, require_table(self.specs, table), rows)

    def _lookup(self, spec: TableSpec, rows: np.ndarray) -> Rows:
        begin = time.perf_counter()
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            ids = to_device(torch.as_tensor(rows, dtype=torch.int64), self._device)
            found = gather(self._tables[spec.name], ids.flatten())
            inverse = torch.arange(ids.numel(), device=self._device).view(ids.shape)
        if self._stream is not None:
            self._stream.synchronize()  # the caller may use the answer on any stream
        self._counters.answered(spec, rows.size, rows.size, time.perf_counter() - begin)
        return Rows(found, inverse)  # type: ignore[arg-type]

    def stats(self) -> MemoryStats:
        """Counters since construction; every row counts as distinct."""
        return self._counters.snapshot()

    def collect(self) -> Iterator[Sample]:
        """Counters and latencies as metrics."""
        return self._counters.collect()

    def close(self) -> None:
        """End the thread and free the tables."""
        self._thread.shutdown()
        self._tables = {}


def gather(table: Tensor, ids: Tensor) -> Tensor:
    """Return the rows [n, row_bytes] of ids [n] on the device of these, from a table there or in page-locked memory."""
    if use_triton(ids):
        from benchmarks.memories.gather_kernel import gather_rows

        return gather_rows(table, ids)
    return table[ids]


def device_table(spec: TableSpec, device: torch.device) -> Tensor:
    """A random table on the device."""
    table = torch.empty(spec.rows, spec.row_bytes, dtype=torch.uint8, device=device)
    for block, rows in random_blocks(spec, range(spec.blocks)):
        begin = block * spec.block_rows
        table[begin : begin + len(rows)] = torch.from_numpy(rows).to(device)
    return table


@contextmanager
def locked_table(spec: TableSpec, device: torch.device) -> Iterator[Tensor]:
    """A random table in the host's memory, page-locked for a GPU as long as the block lasts."""
    table = np.empty((spec.rows, spec.row_bytes), np.uint8)  # torch's own page-locked memory comes in powers of two
    fill_table(spec, table)
    if device.type != "cuda":
        yield torch.from_numpy(table)
        return
    runtime = torch.cuda.cudart()
    torch.cuda.check_error(runtime.cudaHostRegister(table.ctypes.data, table.nbytes, 0))
    try:
        yield torch.from_numpy(table)
    finally:
        torch.cuda.synchronize()
        torch.cuda.check_error(runtime.cudaHostUnregister(table.ctypes.data))
