"""The limit of open files of a shard's process: each stream of rows takes one, and many systems start with 1024."""

from __future__ import annotations

import resource

_OTHER_FILES = 256  # connections of the control and metrics doors, blocks being read, libraries


def allow_open_files(streams: int) -> int:
    """Raise this process's limit of open files to what this many streams need, as far as the hard limit allows.

    Returns:
        The number of streams that the limit now suffices for.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return streams
    wanted = streams + _OTHER_FILES
    possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if possible > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    return max(0, max(possible, soft) - _OTHER_FILES)
