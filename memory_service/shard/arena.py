"""Memory for the blocks of a table: address space for all blocks, RAM only for the slots in use."""

from __future__ import annotations

import heapq
import mmap
import os
import sys
import weakref
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from memory_service.errors import OutOfMemory

_PAGE = mmap.PAGESIZE
_NORESERVE = 0x4000 if sys.platform == "linux" else 0  # MAP_NORESERVE, which Python's mmap names from 3.11 on
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE of Linux 5.14, which Python's mmap does not define


class Arena:
    """Adjacent slots of `block_rows` packed rows each, handed out lowest first. Not thread-safe.

    A slot is pre-faulted when it is taken, so that no lookup causes a page fault, and its RAM is returned to the system
    when it is given back. The memory is anonymous and in huge pages, since a gather of random rows would otherwise miss
    the TLB on nearly every row.

    Args:
        capacity: number of slots.
        block_rows: rows of a slot.
        row_bytes: bytes of a packed row.
        shared: use a memfd that other processes of this machine can map. Most systems keep it in small pages, see
            /sys/kernel/mm/transparent_hugepage/shmem_enabled.

    Raises:
        OutOfMemory: the system has no address space of that size.
    """

    def __init__(self, capacity: int, block_rows: int, row_bytes: int, shared: bool = False) -> None:
        self._block_rows = block_rows
        self._slot_bytes = block_rows * row_bytes
        self._memory, self.fd = _reserve(capacity * self._slot_bytes, shared)
        """`fd` is the descriptor of the memfd, or None if the memory is not shared."""
        if self.fd is not None:
            weakref.finalize(self, os.close, self.fd)
        view = np.frombuffer(self._memory, np.uint8, capacity * self._slot_bytes)  # keeps the mapping alive
        self.rows: NDArray[np.uint8] = view.reshape(capacity * block_rows, row_bytes)
        """All slots as one array, uint8 [capacity * block_rows, row_bytes]; free slots must not be accessed."""
        self._returned: list[int] = []  # heap of the free slots below _fresh
        self._fresh = 0  # the lowest slot that was never taken

    @property
    def nbytes(self) -> int:
        """Bytes of the slots in use."""
        return (self._fresh - len(self._returned)) * self._slot_bytes

    def slot(self, index: int) -> NDArray[np.uint8]:
        """Writable view of a slot, uint8 [block_rows, row_bytes]."""
        return self.rows[index * self._block_rows : (index + 1) * self._block_rows]

    def take(self) -> int:
        """Take the lowest free slot and commit its memory; its content is undefined.

        Raises:
            OutOfMemory: there is not enough RAM.
        """
        slot = self._returned[0] if self._returned else self._fresh
        try:
            self._commit(slot)
        except OSError as error:
            raise _no_memory(self.nbytes + self._slot_bytes, error) from error
        if self._returned:
            heapq.heappop(self._returned)
        else:
            self._fresh += 1
        return slot

    def give_back(self, slots: list[int]) -> None:
        """Free slots that no reader uses any more, and return their memory to the system."""
        for slot in slots:
            heapq.heappush(self._returned, slot)
            self._release(slot)

    def _commit(self, slot: int) -> None:
        low, size = slot * self._slot_bytes, self._slot_bytes
        if self.fd is not None:
            os.posix_fallocate(self.fd, low, size)  # an error now instead of a SIGBUS on access if RAM is short
        aligned = low // _PAGE * _PAGE
        try:
            self._memory.madvise(_POPULATE_WRITE, aligned, low + size - aligned)
        except OSError:  # an older kernel
            self.slot(slot).reshape(-1)[::_PAGE] = 0

    def _release(self, slot: int) -> None:
        """Return the slot's whole pages to the system; small slots share pages with their neighbours."""
        low = -(-slot * self._slot_bytes // _PAGE) * _PAGE
        high = (slot + 1) * self._slot_bytes // _PAGE * _PAGE
        advice = getattr(mmap, "MADV_DONTNEED" if self.fd is None else "MADV_REMOVE", None)
        if advice is not None and high > low:
            with suppress(OSError):  # not supported by this system: the slot is free anyway
                self._memory.madvise(advice, low, high - low)


def _reserve(size: int, shared: bool) -> tuple[mmap.mmap, int | None]:
    """Reserve address space of `size` bytes without RAM, and return it with the descriptor of its memfd, if any."""
    size = max(size, 1)  # an empty mapping is not possible
    fd = os.memfd_create("engram-arena") if shared and hasattr(os, "memfd_create") else None
    try:
        if fd is None:
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        else:
            os.ftruncate(fd, size)
            memory = mmap.mmap(fd, size)
    except (OSError, OverflowError) as error:
        if fd is not None:
            os.close(fd)
        raise _no_memory(size, error) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages: slower, but correct
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory, fd


def _no_memory(size: int, error: Exception) -> OutOfMemory:
    return OutOfMemory(f"cannot have {size / 2**30:.1f} GiB for table blocks: add shards or memory ({error})")
