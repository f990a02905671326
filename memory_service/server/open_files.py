"""How many files a shard's process may open: each stream of rows takes one, and many systems begin with 1024."""

from __future__ import annotations

import resource

_BESIDES = 256  # connections of the control door and of metrics, blocks being read, libraries


def allow_open_files(streams: int) -> int:
    """Raise this process's limit to what so many streams need, as far as its hard limit lets it.

    Returns:
        The number of streams that there are files for.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return streams
    wanted = streams + _BESIDES
    possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if possible > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    return max(0, max(possible, soft) - _BESIDES)
