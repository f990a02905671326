"""Where the blocks of a table lie in its arena, for the process itself and others that map it."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

HEADER_BYTES = 4096
NOT_HELD = np.iinfo(np.int64).min // 2
"""As a delta: so far below zero that no row id added to it comes out positive."""
_SEQUENCE, _VERSION = 0, 1


class Layout:
    """A sequence number, the table's version and `delta`, int64 [blocks]: the arena row of `row` is `row + delta`.

    The sequence number is a seqlock: it is odd while the layout, or rows that it points to, are being changed. A reader
    in another process reads the number before and after the rows; they are valid only if both are equal and even.
    """

    def __init__(self, memory: mmap.mmap, blocks: int) -> None:
        self.header = np.frombuffer(memory, np.int64, 2)
        """The sequence number and the version."""
        self.delta: NDArray[np.int64] = np.frombuffer(memory, np.int64, blocks, HEADER_BYTES)
        self.fd: int | None = None
        """File descriptor by which other processes map the layout; None if it is not shared."""

    @classmethod
    def create(cls, blocks: int, shared: bool = False) -> Layout:
        """Make a layout in which no block is held, for its only writer."""
        fd = os.memfd_create("engram-layout") if shared and hasattr(os, "memfd_create") else None
        if fd is not None:
            os.ftruncate(fd, layout_bytes(blocks))
        layout = cls(mmap.mmap(-1 if fd is None else fd, layout_bytes(blocks)), blocks)
        layout.delta[:] = NOT_HELD
        if fd is not None:
            layout.fd = fd
            weakref.finalize(layout, os.close, fd)
        return layout

    @property
    def sequence(self) -> int:
        """Odd while a change is under way, and never the same again after one."""
        return int(self.header[_SEQUENCE])

    @property
    def version(self) -> int:
        """Committed updates that the rows contain."""
        return int(self.header[_VERSION])

    @version.setter
    def version(self, version: int) -> None:
        """To be set within `changing()` once there are readers."""
        self.header[_VERSION] = version

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Mark what readers read meanwhile as invalid. One writer at a time."""
        self.header[_SEQUENCE] += 1
        try:
            yield
        finally:
            self.header[_SEQUENCE] += 1


def layout_bytes(blocks: int) -> int:
    """Return the bytes of a layout of this many blocks."""
    return HEADER_BYTES + 8 * blocks
