"""What we take from libraries without their promise: every entry of docs/borrowed-internals.md, tested.

An upgrade that takes one away fails here, with a sentence that names the page and the entry.
"""

from __future__ import annotations

import ast
import functools
import gc
import inspect
import mmap
import os
import re
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from unittest.mock import MagicMock

import grpc
import numpy as np
import prometheus_client.utils
import pytest
import torch
from torch import nn

from benchmarks.harness.rounds import process_seconds
from memory_service.client import mapped_table, stream
from memory_service.client.cache import _NumpyCache
from memory_service.control import client as control_client
from memory_service.protocol.bearer_token import BearerToken, TokenSender
from memory_service.server.limits import client_of
from memory_service.shard import arena
from memory_service.shard.scratch import Scratch
from reasoning.model.cpu_weights import PackedLinear

ROOT = Path(__file__).parents[2]
PAGE = "docs/borrowed-internals.md"
PACKAGES = ("cluster", "reasoning", "memory_service", "kernels", "benchmarks")
PUBLIC = {"os._exit"}  # documented, whatever its name says


def borrowed(entry: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Mark the test of an entry of the page; whatever it fails with, the failure names the entry."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*args: object, **fixtures: object) -> None:
            try:
                test(*args, **fixtures)
            except Exception as error:
                raise AssertionError(
                    f"an internal that we borrow has changed: see '{entry}' in {PAGE} for what relies on it ({error})"
                ) from error

        run.entry = entry  # type: ignore[attr-defined]
        return run

    return decorate


def entries() -> dict[str, str]:
    """The page's entries: heading to text."""
    return dict(re.findall(r"^### (.+)\n+((?:(?!^#).*\n?)+)", (ROOT / PAGE).read_text(), re.M))


def test_every_entry_of_the_page_has_its_test_and_every_test_its_entry():
    named = {heading: re.findall(r"^- Test: `(\w+)`", text, re.M) for heading, text in entries().items()}
    tests = {value.entry: [name] for name, value in globals().items() if hasattr(value, "entry")}
    assert named == tests


def test_every_entry_names_the_files_that_rely_on_it():
    for heading, text in entries().items():
        [where] = re.findall(r"^- Where: (.+)$", text, re.M)
        sources = "".join((ROOT / path).read_text() for path in re.findall(r"`([\w/]+\.py)`", where))
        assert sources, f"{heading}: name at least one file"
        for symbol in re.findall(r"`([^`]+)`", re.findall(r"^- Uses: (.+)$", text, re.M)[0]):
            assert symbol in sources, f"{heading}: {symbol} is in none of its files any more"


def private_names(path: Path) -> Iterator[str]:
    """Names with a leading underscore that a module takes from other projects, dotted from the name imported."""
    tree = ast.parse(path.read_text())
    foreign = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            if modules[0].split(".")[0] in {*PACKAGES, "protos", "__future__"}:
                continue
            foreign |= {(name.asname or name.name).split(".")[0] for name in node.names}
            dotted = [f"{module}.{name.name}" for module in modules for name in node.names]
            yield from (name for name in dotted if re.search(r"\b_[a-z]", name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match("_[a-zA-Z]", node.attr):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in foreign:
                yield ast.unparse(node)


def test_every_private_name_of_another_project_is_on_the_page():
    text = (ROOT / PAGE).read_text()
    found = {
        (str(path.relative_to(ROOT)), name)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for name in private_names(path)
        if name not in PUBLIC
    }
    assert ("reasoning/model/cpu_weights.py", "torch.ops.mkldnn._linear_pointwise") in found
    private = {(path, name): next(part for part in name.split(".") if part.startswith("_")) for path, name in found}
    missing = [use for use, part in private.items() if use[0] not in text or part not in text]
    assert missing == [], f"describe them in {PAGE}, each with a test here"


def test_a_failure_names_the_page_and_the_entry():
    def gone() -> None:
        raise AttributeError("no attribute '_x'")

    with pytest.raises(AssertionError, match=r"'Some: thing' in docs/borrowed-internals\.md .*no attribute '_x'"):
        borrowed("Some: thing")(gone)()


@borrowed("Ray: resources that each node has free")
def test_ray_tells_what_every_node_has_free():
    function = import_module("ray._private.state").available_resources_per_node
    assert not inspect.signature(function).parameters
    assert "node hex id to available resources" in function.__doc__


@borrowed("Ray: the exception behind a task's error")
def test_ray_keeps_what_a_remote_method_raised_as_the_cause():
    from ray.exceptions import RayTaskError

    raised = ValueError("no such model")
    error = RayTaskError("generate", "Traceback ...", raised, proctitle="worker", ip="127.0.0.1")
    assert error.cause is raised
    assert error.as_instanceof_cause().cause is raised


@borrowed("Ray: several nodes on one machine")
def test_ray_starts_and_loses_nodes_on_one_machine_and_runs_functions_in_actors():
    from ray.cluster_utils import Cluster

    assert {"initialize_head", "head_node_args"} <= inspect.signature(Cluster).parameters.keys()
    assert inspect.signature(Cluster.add_node).parameters["node_args"].kind is inspect.Parameter.VAR_KEYWORD
    assert "node" in inspect.signature(Cluster.remove_node).parameters
    assert "def __ray_call__" in inspect.getsource(import_module("ray.actor"))


@borrowed("torch: oneDNN's packed matrices")
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")
def test_torch_multiplies_with_a_matrix_that_onednn_packed():
    linear = nn.Linear(48, 80, bias=False)
    x = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(PackedLinear(linear)(x), linear(x))
    assert isinstance(torch.ops.mkldnn._is_mkldnn_bf16_supported(), bool)


@contextmanager
def echo(seen: list[grpc.ServicerContext]) -> Iterator[grpc.Channel]:
    """A connection to a server whose method /test.Echo/Say sends back what it gets; it keeps the contexts of calls."""

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        seen.append(context)
        return request

    handler = grpc.method_handlers_generic_handler("test.Echo", {"Say": grpc.unary_unary_rpc_method_handler(answer)})
    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=(handler,), options=[("grpc.so_reuseport", 0)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        server.stop(None)


@borrowed("gRPC: the name of a caller")
def test_grpc_names_a_caller_by_kind_of_address_host_and_port():
    seen: list[grpc.ServicerContext] = []
    with echo(seen) as channel:
        channel.unary_unary("/test.Echo/Say")(b"hello", timeout=30)
    [context] = seen
    assert re.fullmatch(r"ipv4:127\.0\.0\.1:\d+", context.peer())
    assert client_of(context) == "ipv4:127.0.0.1"


@borrowed("gRPC: names of channel options")
def test_grpc_knows_the_options_that_we_set():
    """gRPC ignores an option that it does not know, without a word."""
    [library] = Path(grpc.__file__).parent.glob("_cython/cygrpc*.so")
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for name, _ in (*control_client._OPTIONS, *stream.OPTIONS):
            assert content.find(name.encode() + b"\0") >= 0, name


@borrowed("gRPC: details of a call")
def test_grpc_takes_the_details_of_a_call_from_a_tuple_of_our_own():
    seen: list[grpc.ServicerContext] = []
    with echo(seen) as channel:
        say = grpc.intercept_channel(channel, TokenSender(BearerToken("0123456789abcdef"))).unary_unary(
            "/test.Echo/Say"
        )
        assert say(b"hello", timeout=30, metadata=(("mine", "too"),)) == b"hello"
    metadata = set(map(tuple, seen[0].invocation_metadata()))
    assert {("authorization", "Bearer 0123456789abcdef"), ("mine", "too")} <= metadata


@borrowed("CPython: the number of references to a buffer")
def test_a_buffer_is_reused_only_after_every_view_of_it_is_gone():
    scratch = Scratch()
    first = scratch.rows(10, 100)
    address = first.ctypes.data
    second = scratch.rows(10, 100)
    assert second.ctypes.data != address, "the first is still held"
    address = second.ctypes.data
    view = second[3:, ::2]
    del second
    assert scratch.rows(5, 100).ctypes.data != address, "a view of it is still held"
    del first, view
    address = scratch.rows(10, 100).ctypes.data
    assert scratch.rows(8, 100).ctypes.data == address, "it is free"


@borrowed("CPython: memory is free with its last reference")
def test_an_array_is_freed_with_its_last_reference_without_the_collector():
    gc.disable()
    try:
        rows = np.empty((1000, 264), np.uint8)
        gone = weakref.ref(rows)
        views = [rows[5:], rows.reshape(-1)]
        del rows
        assert gone() is not None
        views.clear()
        assert gone() is None
    finally:
        gc.enable()


@borrowed("Linux: numbers that Python's mmap lacks")
@pytest.mark.skipif(sys.platform != "linux", reason="numbers of Linux")
def test_numbers_of_linux_are_those_that_newer_pythons_name():
    assert getattr(mmap, "MADV_POPULATE_READ", mapped_table._POPULATE_READ) == mapped_table._POPULATE_READ
    assert getattr(mmap, "MADV_POPULATE_WRITE", arena._POPULATE_WRITE) == arena._POPULATE_WRITE
    assert getattr(mmap, "MAP_NORESERVE", arena._NORESERVE) == arena._NORESERVE
    reserved = mmap.mmap(-1, 1 << 40, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | arena._NORESERVE)
    reserved[-1:] = b"x"
    assert reserved[-2:] == b"\0x"


@borrowed("Linux: pages that are there before they are read")
@pytest.mark.skipif(sys.platform != "linux", reason="advice that Linux takes")
def test_advice_of_linux_brings_all_pages_of_a_mapping():
    size = 64 << 20
    file = os.memfd_create("pages")
    os.posix_fallocate(file, 0, size)
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    for number, memory in (
        (arena._POPULATE_WRITE, mmap.mmap(-1, size, flags=private)),
        (mapped_table._POPULATE_READ, mmap.mmap(file, size, prot=mmap.PROT_READ)),
    ):
        before = resident_bytes()
        try:
            memory.madvise(number)
        except OSError:
            pytest.skip("Linux before 5.14")
        assert resident_bytes() - before > size * 0.9
    os.close(file)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@borrowed("Linux: the processor clock of another process")
@pytest.mark.skipif(sys.platform != "linux", reason="a clock of Linux")
def test_a_clock_numbered_by_a_process_tells_its_processor_time():
    before = time.process_time()
    between = process_seconds(os.getpid())
    assert before <= between <= time.process_time()


@borrowed("numpy: which of several assignments stays")
def test_of_assignments_to_one_place_the_last_one_stays():
    rng = np.random.default_rng(0)
    for size in (1, 2, 63, 64, 65, 1000, 100_000):
        places = rng.integers(0, max(1, size // 3), size)
        target = np.full(size, -1, np.int32)
        order = np.arange(size, dtype=np.int32)
        target[places[::-1]] = order[::-1]
        distinct, first = np.unique(places, return_index=True)
        np.testing.assert_array_equal(target[distinct], first)
    cache = _NumpyCache(sets=5, ways=1, table_rows=1000, row_bytes=4)
    np.testing.assert_array_equal(cache._first_of_each_set(np.array([3, 1, 3, 1, 0])), [True, True, False, False, True])


@borrowed("pytest-xdist: groups of tests")
def test_xdist_gives_a_process_all_tests_of_a_group():
    from tests.schedule import GroupScheduling

    ray, other = (
        ["tests/cluster/pool/test_ray_pool.py::a", "tests/cluster/test_ray.py::b[x::y]"],
        "tests/project/test_docs.py",
    )
    workers = [MagicMock(shutting_down=False) for _ in range(2)]
    config = MagicMock(option=MagicMock(loadscopereorder=False))
    config.getvalue.return_value = ["2*popen"]
    schedule = GroupScheduling(config, MagicMock())
    for worker in workers:
        schedule.add_node(worker)
        schedule.add_node_collection(worker, [*ray, f"{other}::c", f"{other}::d"])
    schedule.schedule()
    assert [call.args for worker in workers for call in worker.send_runtest_some.call_args_list] == [
        ([0, 1],),
        ([2, 3],),
    ]


@borrowed("prometheus_client: how a bucket's bound is written")
def test_bounds_of_buckets_are_written_as_go_writes_them():
    write = prometheus_client.utils.floatToGoString
    assert [write(bound) for bound in (0.0005, 0.25, 1.0, 1e7, float("inf"))] == [
        "0.0005",
        "0.25",
        "1.0",
        "1e+07",
        "+Inf",
    ]
