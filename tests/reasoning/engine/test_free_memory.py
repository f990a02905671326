from __future__ import annotations

import resource

import pytest
import torch

from reasoning.engine.free_memory import free_bytes, host_bytes

GIB = 1 << 30


@pytest.fixture
def host(tmp_path):
    """Write files under a root; the one that says that 8 GiB are available is there."""

    def write(**files):
        for name, text in {"proc/meminfo": f"MemTotal: 99 kB\nMemAvailable: {8 << 20} kB\n", **files}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return host_bytes(tmp_path)

    return write


def group(folder, names, limit, usage, stat):
    return {f"{folder}/{name}": text for name, text in zip(names, (str(limit), str(usage), stat), strict=True)}


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
V2 = ("memory.max", "memory.current", "memory.stat")


def test_without_limits_the_available_memory_is_free(host):
    assert host() == 8 * GIB


def test_a_control_group_leaves_its_limit_less_what_it_cannot_drop(host):
    files = group("sys/fs/cgroup/pod/worker", V2, 3 * GIB, 2 * GIB, f"anon 5\ninactive_file {GIB}\n")
    assert host(**{"proc/self/cgroup": "0::/pod/worker\n"}, **files) == 2 * GIB


def test_the_tightest_of_the_groups_around_a_process_counts(host):
    inner = group("sys/fs/cgroup/pod/worker", V2, "max", 2 * GIB, "inactive_file 0\n")
    outer = group("sys/fs/cgroup/pod", V2, 5 * GIB, 4 * GIB, "inactive_file 0\n")
    assert host(**{"proc/self/cgroup": "0::/pod/worker\n"}, **inner, **outer) == GIB


def test_groups_of_version_one_count_and_foreign_paths_are_skipped(host):
    files = group("sys/fs/cgroup/memory", V1, 4 * GIB, 2 * GIB, f"total_inactive_file {GIB}\n")
    assert host(**{"proc/self/cgroup": "5:cpu:/x\n4:memory,x:/docker/unseen\n"}, **files) == 3 * GIB


def test_a_group_beyond_its_limit_leaves_nothing(host):
    files = group("sys/fs/cgroup", V2, GIB, 2 * GIB, "inactive_file 0\n")
    assert host(**{"proc/self/cgroup": "0::/\n"}, **files) == 0


def test_a_limit_on_the_address_space_bounds_what_is_free(host, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (3 * GIB, 3 * GIB))
    used_pages = GIB // resource.getpagesize()
    assert host(**{"proc/self/statm": f"{used_pages} 1 1 1 0 1 0\n"}) == 2 * GIB


def test_this_host_has_memory_and_so_has_its_cpu():
    assert 0 < free_bytes(torch.device("cpu")) < 1 << 50
