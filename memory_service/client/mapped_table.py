"""Rows of a shard on the same machine, read from its shared memory instead of over the network."""

from __future__ import annotations

import mmap
import os
import select
import weakref
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_service.native import extension
from memory_service.protocol.shared_layout import Layout, layout_bytes
from memory_service.protocol.shared_table import SharedTable, machine_id
from memory_service.tables.spec import TableSpec

_TRIES = 3  # a layout changes for milliseconds, while blocks are added or dropped
_POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14, for which Python's mmap has no name


class MappedTable:
    """A table of a live process, mapped read-only. Rows that changed while they were read are not returned."""

    def __init__(self, spec: TableSpec, arena: mmap.mmap, layout: Layout, pidfd: int) -> None:
        self._spec = spec
        count = spec.blocks * spec.block_rows
        self._rows: NDArray[np.uint8] = np.frombuffer(arena, np.uint8, count * spec.row_bytes).reshape(count, -1)
        self._layout = layout
        self._alive = select.poll()
        self._alive.register(pidfd, select.POLLIN)  # readable once the process has ended
        compiled = extension()
        self.native: Any = None
        """The native reader of the table; None where there is none."""
        if compiled is not None:
            self.native = compiled.client.map_table(self._rows, layout.header, layout.delta, spec.block_shift, pidfd)
        weakref.finalize(self, os.close, pidfd)
        self._populate(arena)

    @classmethod
    def open(cls, spec: TableSpec, shared: SharedTable) -> MappedTable | None:
        """Map a table; None if its process runs on another machine, has ended, or belongs to another user."""
        if shared.machine != machine_id():
            return None
        pidfd = None
        try:
            pidfd = os.pidfd_open(shared.pid)
            arena_bytes = spec.blocks * spec.block_rows * spec.row_bytes
            arena = _map(shared.pid, shared.arena_fd, shared.arena_inode, arena_bytes)
            layout = _map(shared.pid, shared.layout_fd, shared.layout_inode, layout_bytes(spec.blocks))
            return cls(spec, arena, Layout(layout, spec.blocks), pidfd)
        except (OSError, ValueError):
            if pidfd is not None:
                os.close(pidfd)
            return None

    @property
    def ended(self) -> bool:
        """Whether the process has ended, so that nothing can be read any more."""
        return bool(self._alive.poll(0))

    def read(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.uint8], int] | None:
        """Read packed rows [n, row_bytes] of row ids [n], and their version.

        Returns None if the process has ended, does not hold all rows, or is changing its layout: send it a request.
        """
        rows = np.empty((len(ids), self._spec.row_bytes), np.uint8)
        if self.native is not None:
            version = self.native.read(np.ascontiguousarray(ids), rows)
            return None if version is None else (rows, version)
        for _ in range(_TRIES):
            before = self._layout.sequence
            version = self._layout.version
            local = self._layout.delta.take(ids >> self._spec.block_shift)
            local += ids
            if before % 2 or (local.size and local.min() < 0):
                return None
            np.take(self._rows, local, axis=0, out=rows, mode="clip")
            if self.ended:
                return None
            if self._layout.sequence == before:
                return rows, version
        return None

    def _populate(self, arena: mmap.mmap) -> None:
        """Enter the pages of held blocks into this process's page table, so that no lookup pays for page faults."""
        delta = self._layout.delta
        held = np.flatnonzero(delta >= -self._spec.rows)
        slots = np.sort(held + delta[held] // self._spec.block_rows)
        slot_bytes = self._spec.block_rows * self._spec.row_bytes
        for run in np.split(slots, np.flatnonzero(np.diff(slots) > 1) + 1):
            if len(run):
                low = int(run[0]) * slot_bytes // mmap.PAGESIZE * mmap.PAGESIZE
                with suppress(OSError):  # an older kernel: page by page, as they are read
                    arena.madvise(_POPULATE_READ, low, (int(run[-1]) + 1) * slot_bytes - low)


def _map(pid: int, fd: int, inode: int, size: int) -> mmap.mmap:
    """Map the memfd of another process; ValueError if the descriptor names another file by now."""
    file = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY)
    try:
        if os.fstat(file).st_ino != inode:
            raise ValueError(f"descriptor {fd} of process {pid} is another file")
        return mmap.mmap(file, size, prot=mmap.PROT_READ)
    finally:
        os.close(file)
