"""How a process finds the memory of a shard on the same machine."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SharedTable:
    """How another process of the machine finds a table of a shard: two descriptors of the shard's process."""

    machine: str
    """Boot id of the kernel."""
    pid: int
    arena_fd: int
    arena_inode: int
    layout_fd: int
    layout_inode: int


def share_table(arena_fd: int | None, layout_fd: int | None) -> SharedTable | None:
    """What to tell others about a table of this process; None where it cannot be mapped."""
    if arena_fd is None or layout_fd is None or not (machine := machine_id()):
        return None
    inodes = [os.fstat(fd).st_ino for fd in (arena_fd, layout_fd)]
    return SharedTable(machine, os.getpid(), arena_fd, inodes[0], layout_fd, inodes[1])


def machine_id() -> str:
    """Equal for processes of one running kernel, and empty where it does not say."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
