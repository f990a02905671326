"""Reusable memory for replies, since fresh memory costs a page fault every 4 KiB, which slows small replies down."""

from __future__ import annotations

import sys
import threading

import numpy as np
from numpy.typing import NDArray

_KEEP_BYTES = 64 << 20  # a larger reply is rare, and expensive for other reasons
_UNUSED = 2  # references to a buffer without views: the attribute, and the argument of getrefcount


class Scratch(threading.local):
    """A buffer for each thread, reused once the array that was returned last is no longer referenced."""

    _buffer: NDArray[np.uint8] | None = None

    def rows(self, count: int, row_bytes: int) -> NDArray[np.uint8]:
        """An array uint8 [count, row_bytes] with undefined content."""
        size = count * row_bytes
        if size > _KEEP_BYTES:
            return np.empty((count, row_bytes), np.uint8)
        if self._buffer is None or self._buffer.size < size or sys.getrefcount(self._buffer) > _UNUSED:
            self._buffer = np.empty(1 << max(size, 1).bit_length(), np.uint8)
        return self._buffer[:size].reshape(count, row_bytes)
