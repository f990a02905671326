"""Free memory of the host, within the limits of its containers, or of a GPU."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

_ROOT = Path("/")


def free_bytes(device: torch.device) -> int:
    """Return how many bytes this process may still allocate on a GPU or on the host."""
    return _gpu_bytes(device) if device.type == "cuda" else host_bytes()


def _gpu_bytes(device: torch.device) -> int:
    """Return the bytes that no process has allocated, and those that torch's allocator keeps for reuse."""
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + idle


def host_bytes(root: Path = _ROOT) -> int:
    """Return how many bytes of host memory this process may still allocate.

    The minimum of the available memory, of what the process' control groups (containers) leave, and of what the limit
    on its address space leaves. `root` is the directory of /proc and /sys.
    """
    return max(0, min(_available(root), *_left_by_groups(root), _address_space(root)))


def _available(root: Path) -> int:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    [kibibytes] = (int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return kibibytes << 10


@dataclass(frozen=True)
class _Version:
    """File names of a version of control groups."""

    mount: str
    limit: str
    usage: str
    reclaimable: str
    """Row of memory.stat that counts file pages, which the kernel reclaims when memory is short."""


_V1 = _Version("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Version("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")


def _left_by_groups(root: Path) -> Iterator[int]:
    """Yield what each control group with a limit leaves, from the process' own group up to the root."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        version = _V2 if not controllers else _V1 if "memory" in controllers.split(",") else None
        if version is not None:
            own = Path(path.lstrip("/"))
            for group in (own, *own.parents):
                yield from _left(root / version.mount / group, version)


def _left(group: Path, version: _Version) -> Iterator[int]:
    try:
        limit, usage = ((group / name).read_text().strip() for name in (version.limit, version.usage))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:  # the root group has no limit, and a container does not see the groups around it
        return
    if limit != "max":
        yield int(limit) - int(usage) + int(stat.get(version.reclaimable, 0))


def _address_space(root: Path) -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return 1 << 63
    pages = int((root / "proc/self/statm").read_text().split()[0])
    return limit - pages * resource.getpagesize()
