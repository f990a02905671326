"""The native client: that plain lookups are plain, what ends that, and replies that make no sense."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future
from contextlib import closing
from unittest.mock import MagicMock

import grpc
import numpy as np
import pytest

from memory_service import (
    ClientConfig,
    DeadlineExceeded,
    InvalidRequest,
    MemoryClient,
    MemoryServiceError,
    RowOutOfRange,
    ShardAddress,
    TableSpec,
)
from memory_service.client import native_dispatch, native_stream
from memory_service.client.native_dispatch import HashedRows, NativeDispatcher
from memory_service.client.native_future import NativeRowsFuture
from memory_service.client.native_stream import NativeRowStream
from memory_service.native import extension
from memory_service.protocol.row_messages import SERVICE
from memory_service.protocol.security import ClientSecurity
from memory_service.shard.shard import ShardConfig
from memory_service.shard.table import ShardTable
from memory_service.tables.distinct import DistinctRows
from protos import memory_pb2 as pb

pytestmark = pytest.mark.skipif(extension() is None, reason="the native implementation is not built: `make native`")


def table_of(spec: TableSpec):
    fingerprint = bytes.fromhex(spec.fingerprint)
    return extension().client.table(spec.name, fingerprint, spec.rows, spec.row_bytes, spec.block_shift)


@pytest.mark.parametrize("shape", [(0,), (), (1,), (300, 4), (3, 0)])
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint16, np.uint64])
def test_hashing_finds_the_distinct_ids(spec: TableSpec, shape: tuple[int, ...], kind: type) -> None:
    rows = np.random.default_rng(0).integers(0, spec.rows, shape).astype(kind)
    hashed, sorted_ = HashedRows(spec, rows, table_of(spec)), DistinctRows(spec, rows)
    assert sorted(hashed.ids.tolist()) == sorted_.ids.tolist()
    assert hashed.size == sorted_.size
    assert hashed.inverse().shape == shape
    np.testing.assert_array_equal(hashed.ids[hashed.inverse()], rows.astype(np.int64))


@pytest.mark.parametrize("rows", [np.array([3, -1]), np.array([1650, 0]), np.array([2**64 - 1], np.uint64)])
def test_hashing_refuses_what_is_not_in_the_table(spec: TableSpec, rows: np.ndarray) -> None:
    with pytest.raises(RowOutOfRange) as caught:
        HashedRows(spec, rows, table_of(spec))
    with pytest.raises(RowOutOfRange) as expected:
        DistinctRows(spec, rows)
    assert str(caught.value) == str(expected.value)
    with pytest.raises(InvalidRequest, match="float64"):
        HashedRows(spec, rows.astype(np.float64), table_of(spec))


@pytest.fixture
def adoptions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """The lookups that ceased to be plain."""
    monkeypatch.setenv("ENGRAM_MEMORY_NATIVE", "1")
    seen: list[object] = []
    adopt = NativeDispatcher._adopt

    def noted(self: NativeDispatcher, plain: object) -> None:
        seen.append(plain)
        adopt(self, plain)

    monkeypatch.setattr(NativeDispatcher, "_adopt", noted)
    yield seen
    seen.clear()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Shards in this process, which answer in Python whatever their clients do, do not answer until it is set."""
    event = threading.Event()
    monkeypatch.setattr("memory_service.shard.shard.extension", lambda: None)
    gather = ShardTable.gather

    def late(self: ShardTable, local: np.ndarray, out: np.ndarray) -> None:
        event.wait(30)
        gather(self, local, out)

    monkeypatch.setattr(ShardTable, "gather", late)
    return event


def plain_client(cluster, spec: TableSpec, shards: int = 2, **config: float):
    """A client whose streams are open, so that its next lookup is plain."""
    client = cluster.start(shards).connect(**config)
    client.lookup("engram.1", np.arange(spec.rows)).result()
    return client


def test_a_lookup_over_open_streams_is_plain(cluster, spec: TableSpec, packed: np.ndarray, adoptions) -> None:
    client = plain_client(cluster, spec, shards=3, hedge_least_s=30)
    for shape in [(), (0,), (40, 3)]:
        ids = np.random.default_rng(0).integers(0, spec.rows, shape)
        future = client.lookup("engram.1", ids)
        assert isinstance(future, NativeRowsFuture)
        rows = future.result()
        assert "_condition" not in vars(future), "no other thread was needed"
        assert future.result() is rows
        np.testing.assert_array_equal(rows.unique[rows.inverse], packed[ids])
    assert not adoptions


def test_a_late_lookup_is_adopted_and_answered(cluster, spec, packed, slow, adoptions) -> None:
    slow.set()
    client = plain_client(cluster, spec)
    slow.clear()
    future = client.lookup("engram.1", np.arange(9))
    while not adoptions:
        time.sleep(0.001)
    slow.set()
    np.testing.assert_array_equal(future.result(30).unique, packed[:9])


def test_a_lookup_that_cannot_be_adopted_fails(cluster, spec, slow, adoptions, monkeypatch) -> None:
    slow.set()
    client = plain_client(cluster, spec)
    slow.clear()
    monkeypatch.setattr(native_dispatch, "PendingLookup", MagicMock(side_effect=MemoryError("no more")))
    unraised: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraised.append)
    with pytest.raises(MemoryServiceError, match=r"'engram.1': the lookup cannot go on: MemoryError.'no more'"):
        client.lookup("engram.1", np.arange(9)).result(30)
    assert len(unraised) == 1
    slow.set()


@pytest.mark.parametrize("waiting", [True, False])
def test_a_lookup_ends_at_its_deadline(cluster, spec, slow, adoptions, waiting: bool) -> None:
    slow.set()
    client = plain_client(cluster, spec, hedge_least_s=30)
    slow.clear()
    future = client.lookup("engram.1", np.arange(9), timeout_s=0.1)
    if not waiting:
        while not future.done():
            time.sleep(0.01)
    assert isinstance(future.exception(30), DeadlineExceeded)
    assert len(adoptions) == 1
    assert client.stats().failed == 1
    slow.set()


def test_a_plain_future_is_a_future(cluster, spec, packed, slow, adoptions) -> None:
    slow.set()
    client = plain_client(cluster, spec, hedge_least_s=30)
    slow.clear()
    called: Future[object] = Future()
    first, second, third, fourth = (client.lookup("engram.1", np.arange(9), timeout_s=60) for _ in range(4))
    with pytest.raises(TimeoutError):
        first.result(timeout=0.01)
    second.add_done_callback(called.set_result)
    assert not third.done()
    assert third.cancel()
    slow.set()
    assert called.result(30) is second
    assert futures.wait([first, fourth], 30).not_done == set()
    for future in (first, second, fourth):
        np.testing.assert_array_equal(future.result(30).unique, packed[:9])
    with pytest.raises(futures.CancelledError):
        third.result()
    done = client.lookup("engram.1", np.arange(9))
    rows = done.result()
    assert done.exception() is None
    assert done.result() is rows


def test_counters_of_plain_lookups(cluster, spec: TableSpec, adoptions) -> None:
    client = plain_client(cluster, spec, hedge_least_s=30)
    before = client.stats()
    for _ in range(5):
        client.lookup("engram.1", np.array([1, 1, 700])).result()
    after = client.stats()
    assert (after.lookups, after.rows, after.unique_rows) == tuple(
        number + added
        for number, added in zip((before.lookups, before.rows, before.unique_rows), (5, 15, 10), strict=True)
    )
    assert sum(after.shard_rows.values()) == sum(before.shard_rows.values()) + 10
    assert after.latency.count == before.latency.count + 5
    assert after.stage_seconds["wait"] > before.stage_seconds["wait"]


def test_nobody_is_late_before_the_least_time_has_passed(cluster, spec, packed, slow, adoptions) -> None:
    slow.set()
    client = plain_client(cluster, spec, hedge_least_s=30)
    slow.clear()
    future = client.lookup("engram.1", np.arange(40))  # of a size that no shard has answered yet
    with pytest.raises(TimeoutError):
        future.result(0.3)
    assert not adoptions
    slow.set()
    np.testing.assert_array_equal(future.result(30).unique, packed[:40])


def test_plain_lookups_take_rows_from_the_cache(cluster, spec: TableSpec, packed: np.ndarray, adoptions) -> None:
    client = cluster.start(3).connect(cache_bytes=1 << 17, hedge_least_s=30)
    rng = np.random.default_rng(0)
    for _ in range(60):
        ids = rng.zipf(1.2, (70, 3)) % spec.rows
        rows = client.lookup("engram.1", ids).result()
        np.testing.assert_array_equal(rows.unique[rows.inverse], packed[ids])
    stats = client.stats()
    assert 0 < stats.cache_hits < stats.unique_rows
    assert stats.cache_hits + stats.cache_misses == stats.unique_rows
    assert sum(stats.shard_rows.values()) == stats.cache_misses
    assert not adoptions


def test_a_late_lookup_keeps_the_rows_of_the_cache(cluster, spec, packed, slow, adoptions) -> None:
    slow.set()
    client = cluster.start(2).connect(cache_bytes=1 << 22)
    client.lookup("engram.1", np.arange(0, spec.rows, 3)).result()
    while sum(client.stats().shard_rows.values()) < len(range(0, spec.rows, 3)):
        time.sleep(0.01)  # rows are kept after the lookup has ended; the test's time limit bounds this
    slow.clear()
    ids = np.arange(spec.rows)[::-1]
    future = client.lookup("engram.1", ids)
    while not adoptions:
        time.sleep(0.001)
    slow.set()
    rows = future.result(30)
    np.testing.assert_array_equal(rows.unique[rows.inverse], packed[ids])
    assert client.stats().cache_hits == len(range(0, spec.rows, 3))


def test_plain_lookups_read_the_memory_of_shards_here(cluster, spec, packed, adoptions) -> None:
    client = cluster.start(2, config=ShardConfig(share_memory=True)).connect(map_local=True)
    for _ in range(3):
        ids = np.random.default_rng(0).integers(0, spec.rows, (50, 4))
        future = client.lookup("engram.1", ids)
        rows = future.result()
        np.testing.assert_array_equal(rows.unique[rows.inverse], packed[ids])
    assert isinstance(future, NativeRowsFuture)
    assert "_condition" not in vars(future)
    assert client.stats().stage_seconds["map"] > 0
    assert client._dispatcher._streams == {}


def test_lookups_are_plain_again_after_a_mapped_shard_was_restarted(processes, spec, packed, adoptions) -> None:
    started = processes(1, share_memory=True)
    client = started.connect(map_local=True, hedge_least_s=30)
    client.lookup("engram.1", np.arange(9)).result()
    started.running[0].kill()
    started.running[0].wait()
    started.ready(started.run(started.running[0].args))
    for _ in range(3):
        future = client.lookup("engram.1", np.arange(spec.rows))
        np.testing.assert_array_equal(future.result().unique, packed)
    assert isinstance(future, NativeRowsFuture)
    assert "_condition" not in vars(future)


def test_rows_land_in_memory_that_the_caller_allocates_and_is_used_again(cluster, spec, packed, adoptions) -> None:
    blocks: list[np.ndarray] = []

    def allocate(size: int) -> np.ndarray:
        blocks.append(np.zeros(size, np.uint8))
        return blocks[-1]

    config = ClientConfig(hedge_least_s=30)
    with closing(MemoryClient.connect(cluster.start(1).servers[0].address, config=config, allocate=allocate)) as client:
        client.lookup("engram.1", np.arange(9)).result()
        for low in range(5):
            rows = client.lookup("engram.1", np.arange(low, low + 500)).result()
            np.testing.assert_array_equal(rows.unique, packed[low : low + 500])
            assert any(np.shares_memory(rows.unique, block) for block in blocks)
    assert len(blocks) < 7, "two lookups have their memory at a time: ids, index and rows each"


class Asked:
    """A request for two rows, and what came of it."""

    def __init__(self, spec: TableSpec) -> None:
        self.spec, self.ids, self.epoch, self.request_id = spec, np.array([4, 5]), 1, 0
        self.deadline = time.monotonic() + 30
        self.min_version = 0
        self.outcome: Future[tuple[np.ndarray, int]] = Future()

    def land(self, parts, version: int) -> None:
        self.outcome.set_result((np.concatenate(parts), version))

    def fail(self, error: MemoryServiceError) -> None:
        self.outcome.set_exception(error)


Answer = Callable[[pb.LookupRequest, TableSpec], list[bytes]]


@pytest.fixture
def stream_to(spec: TableSpec, monkeypatch: pytest.MonkeyPatch, stack) -> Callable[[Answer], NativeRowStream]:
    """A stream to a server that answers requests as it is told."""

    def start(answer: Answer) -> NativeRowStream:
        def lookup(requests, context):
            for request in requests:
                yield from answer(request, spec)

        server = grpc.server(futures.ThreadPoolExecutor(2))
        kind = grpc.stream_stream_rpc_method_handler(lookup, request_deserializer=pb.LookupRequest.FromString)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Lookup": kind}),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        stack.callback(lambda: server.stop(0).wait())
        monkeypatch.setattr(native_stream, "rows_address", lambda *_: f"127.0.0.1:{port}")
        native = extension().client
        client = native.Client([1.0], lambda plain: None, lambda: None)
        stack.callback(client.close)
        stream = NativeRowStream(
            *(ShardAddress("shard-0", "nowhere:1"), 1.0, ClientSecurity(), lambda epoch: None), client, table_of
        )
        stack.callback(lambda: (stream.break_off("over"), stream.join(30)))
        return stream

    return start


def reply(request: pb.LookupRequest, rows: bytes = b"", **fields: object) -> bytes:
    return pb.LookupReply(request_id=request.request_id, rows=rows, **fields).SerializeToString()  # type: ignore[arg-type]


SENSELESS: dict[str, Answer] = {
    "bytes of rows": lambda request, spec: [reply(request, b"x")],
    "sent rows from 1 on of version 0, expected them from 0": lambda request, spec: [
        reply(request, bytes(spec.row_bytes), first_row=1)
    ],
    "from 1 on of version 8, expected them from 1 on of version 7": lambda request, spec: [
        reply(request, bytes(spec.row_bytes), version=7),
        reply(request, bytes(spec.row_bytes), version=8, first_row=1),
    ],
    "sent 3 rows for 2 row ids": lambda request, spec: [reply(request, bytes(3 * spec.row_bytes))],
    "shard-0 is full": lambda request, spec: [
        reply(request, status=pb.STATUS_RESOURCE_EXHAUSTED, message="shard-0 is full")
    ],
}


@pytest.mark.parametrize("text", SENSELESS)
def test_a_senseless_reply_fails_its_request_alone(stream_to, spec: TableSpec, text: str) -> None:
    good: Answer = lambda request, spec: [reply(request, bytes(2 * spec.row_bytes), version=3)]  # noqa: E731
    stream = stream_to(lambda request, spec: (SENSELESS[text] if request.request_id == 1 else good)(request, spec))
    first, second = Asked(spec), Asked(spec)
    for asked in (first, second):
        stream.send(asked)
    with pytest.raises(MemoryServiceError, match=text):
        first.outcome.result(30)
    assert second.outcome.result(30)[1] == 3


def test_a_request_may_begin_again(stream_to, spec: TableSpec) -> None:
    def answer(request: pb.LookupRequest, spec: TableSpec) -> list[bytes]:
        size = spec.row_bytes
        last = reply(request, b"\2" * size, version=2), reply(request, b"\3" * size, version=2, first_row=1)
        return [reply(request, b"\1" * size, version=1), *last]

    asked = Asked(spec)
    stream_to(answer).send(asked)
    rows, version = asked.outcome.result(30)
    assert (version, rows[:, 0].tolist()) == (2, [2, 3])


def test_a_message_that_is_no_reply_ends_the_stream(stream_to, spec: TableSpec) -> None:
    stream, asked = stream_to(lambda request, spec: [b"\xff\xff"]), Asked(spec)
    stream.send(asked)
    with pytest.raises(MemoryServiceError, match=r"shard-0 at nowhere:1.*the stream broke: .*no LookupReply"):
        asked.outcome.result(30)
    assert stream.retired


def test_a_stream_that_is_told_to_end_is_retired(stream_to, spec: TableSpec) -> None:
    bye = pb.LookupReply(status=pb.STATUS_UNAVAILABLE, message="shard-0 is stopping").SerializeToString()
    stream = stream_to(lambda request, spec: [reply(request, bytes(2 * spec.row_bytes)), bye])
    first, second = Asked(spec), Asked(spec)
    stream.send(first)
    assert first.outcome.result(30)[0].shape == (2, spec.row_bytes)
    while not stream.retired:
        time.sleep(0.001)
    stream.send(second)
    with pytest.raises(MemoryServiceError, match="shard-0 is stopping"):
        second.outcome.result(30)
