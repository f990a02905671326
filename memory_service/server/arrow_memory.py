"""A bound on the memory that Arrow allocates in a shard's process.

Arrow Flight decompresses a batch before the shard sees it, to a thousand times its size if the sender means harm. With
the bound, decompressing too much fails, that stream ends, and the shard goes on. Rows are not affected: numpy allocates
tables and replies, and gRPC the batches that are not compressed.
"""

from __future__ import annotations

import os
import sys

LIMIT_BYTES = 1 << 30  # a row request of the largest size takes 8 MiB, a block of a snapshot a few dozen


def bounded_environment() -> dict[str, str]:
    """Return the environment variables of mimalloc, Arrow's allocator, which reads them only while it is loaded."""
    return {"MIMALLOC_RESERVE_OS_MEMORY": f"{LIMIT_BYTES >> 10}KiB", "MIMALLOC_DISALLOW_OS_ALLOC": "1"}


def restart_bounded() -> None:
    """Start this process again with the bound, unless it has it or its user has set the variables."""
    if not os.environ.keys() & bounded_environment().keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | bounded_environment())
