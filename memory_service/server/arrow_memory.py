"""A bound on the memory that Arrow may take in a shard's process.

Arrow Flight unpacks a compressed batch before anybody can look at it, a thousand times its size if the sender wants
that. With the bound, unpacking too much fails, that stream ends, and the shard goes on. Rows are not concerned: tables
and replies lie in memory of numpy's, and batches that are not compressed in gRPC's.
"""

from __future__ import annotations

import os
import sys

LIMIT_BYTES = 1 << 30  # a row request of the largest size takes 8 MiB, a block of a snapshot a few dozen


def bounded_environment() -> dict[str, str]:
    """Variables that mimalloc, Arrow's allocator, reads when the library is loaded and never after."""
    return {"MIMALLOC_RESERVE_OS_MEMORY": f"{LIMIT_BYTES >> 10}KiB", "MIMALLOC_DISALLOW_OS_ALLOC": "1"}


def restart_bounded() -> None:
    """Start this process over as a bounded one, unless it is one already or its user chose the variables."""
    if not os.environ.keys() & bounded_environment().keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | bounded_environment())
