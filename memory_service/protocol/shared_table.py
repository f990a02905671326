"""How a process finds the memory of a shard on the same machine."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SharedTable:
    """The file descriptors, in the shard's process, of a table's arena and layout, and the inodes to expect there."""

    machine: str
    """Boot id of the kernel: another process can map the table only under the same kernel."""
    pid: int
    """Process id of the shard."""
    arena_fd: int
    arena_inode: int
    layout_fd: int
    layout_inode: int


def share_table(arena_fd: int | None, layout_fd: int | None) -> SharedTable | None:
    """Describe a table of this process to other processes; None if they cannot map it."""
    if arena_fd is None or layout_fd is None or not (machine := machine_id()):
        return None
    inodes = [os.fstat(fd).st_ino for fd in (arena_fd, layout_fd)]
    return SharedTable(machine, os.getpid(), arena_fd, inodes[0], layout_fd, inodes[1])


def machine_id() -> str:
    """Return the kernel's boot id, equal for all processes under it; empty if the kernel has none."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
