"""One big piece of anonymous memory for the blocks of a table, in huge pages where the system has them."""

import mmap

import numpy as np
from numpy.typing import NDArray

_PAGE = 4096


class Arena:
    """Slots of `block_rows` packed rows each, back to back.

    Huge pages matter because a gather of random rows otherwise misses the TLB on nearly every row. The memory is
    touched once here, so that no lookup pays for a page fault.
    """

    def __init__(self, slots: int, block_rows: int, row_bytes: int) -> None:
        self._block_rows = block_rows
        size = slots * block_rows * row_bytes
        self.rows: NDArray[np.uint8] = _anonymous(size).reshape(slots * block_rows, row_bytes)
        """All slots as one array, uint8 [slots * block_rows, row_bytes]."""

    def slot(self, index: int) -> NDArray[np.uint8]:
        """Writable view of one slot, uint8 [block_rows, row_bytes]."""
        return self.rows[index * self._block_rows : (index + 1) * self._block_rows]


def _anonymous(size: int) -> NDArray[np.uint8]:
    if size == 0:
        return np.empty(0, np.uint8)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(
            f"cannot reserve {size / 2**30:.1f} GiB for table blocks: add shards or memory ({error})"
        ) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        _advise_huge_pages(memory)
    view = np.frombuffer(memory, np.uint8)  # keeps the mapping alive
    view[::_PAGE] = 0
    return view


def _advise_huge_pages(memory: mmap.mmap) -> None:
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        return  # a kernel built without them: slower, not wrong
