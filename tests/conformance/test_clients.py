"""Our own clients against a shard that answers as scripts say: what the wire allows, and what it does not."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from itertools import islice

import grpc
import numpy as np
import pytest

from benchmarks.faults.mutations import mutate
from memory_service import MemoryClient, MemoryServiceError, ResourceExhausted, ShardUnavailable
from memory_service.client.config import ClientConfig
from memory_service.protocol.status import _ERRORS as ERRORS
from protos import memory_pb2 as pb
from tests.conformance.implementations import IMPLEMENTATIONS, choose
from tests.conformance.scripted_shard import Message, ScriptedShard
from tests.memory_service.conftest import packed_of, spec_of

Requests = Iterator[pb.LookupRequest]
Context = grpc.ServicerContext

SPEC = spec_of()
PACKED = packed_of(SPEC)
IDS = np.random.default_rng(0).permutation(SPEC.rows)[:60]


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    choose(request.param, monkeypatch)
    return request.param


@pytest.fixture
def shard() -> Iterator[ScriptedShard]:
    shard = ScriptedShard(SPEC, PACKED)
    yield shard
    shard.stop()


@pytest.fixture
def client(shard: ScriptedShard, implementation: str) -> Iterator[MemoryClient]:
    client = MemoryClient.connect(shard.address, config=ClientConfig(lookup_timeout_s=20))
    yield client
    client.close()


def rows_of(client: MemoryClient, ids: np.ndarray = IDS) -> np.ndarray:
    rows = client.lookup(SPEC.name, ids).result()
    return rows.unique[rows.inverse]


def test_a_request_says_all_that_the_wire_demands(shard: ScriptedShard, client: MemoryClient) -> None:
    for count in (1, 60):
        np.testing.assert_array_equal(rows_of(client, IDS[:count]), PACKED[IDS[:count]])
    first, second = shard.requests
    assert 0 < first.request_id != second.request_id > 0
    for request, count in ((first, 1), (second, 60)):
        assert (request.table, request.epoch, request.min_version) == (SPEC.name, 1, 0)
        assert request.fingerprint.hex() == SPEC.fingerprint
        assert 10_000 < request.timeout_ms <= 20_000
        assert set(shard.ids(request)) == set(IDS[:count])
    assert 0 < second.sent_us - first.sent_us < 20_000_000


def test_ids_of_a_table_beyond_32_bits_have_eight_bytes(implementation: str) -> None:
    large = spec_of(column_rows=(1 << 33, 1, 1, 1), block_rows=1 << 20)
    shard = ScriptedShard(large)
    ids = np.array([0, (1 << 33) - 1, 1 << 32])
    shard.script = lambda requests, _: (
        pb.LookupReply(
            request_id=request.request_id,
            epoch=1,
            version=1,
            rows=np.repeat(shard.ids(request)[:, None], large.row_bytes // 8, 1).tobytes(),
        )
        for request in requests
    )
    client = MemoryClient.connect(shard.address)
    try:
        rows = client.lookup(large.name, ids).result()
        np.testing.assert_array_equal(rows.unique.view(np.int64)[rows.inverse, 0], ids)
        assert len(shard.requests[0].row_ids) == 3 * 8
    finally:
        client.close()
        shard.stop()


def in_chunks(shard: ScriptedShard, request: pb.LookupRequest, size: int) -> Iterator[pb.LookupReply]:
    count = len(shard.ids(request))
    return (shard.reply(request, low, min(low + size, count)) for low in range(0, count, size))


@pytest.mark.parametrize("size", [1, 7, 59, 60, 61])
def test_rows_may_come_in_chunks_of_any_size(shard: ScriptedShard, client: MemoryClient, size: int) -> None:
    shard.script = lambda requests, _: (reply for request in requests for reply in in_chunks(shard, request, size))
    np.testing.assert_array_equal(rows_of(client), PACKED[IDS])


@pytest.mark.parametrize("whole", [True, False], ids=["out of order", "interleaved"])
def test_replies_to_several_requests_may_come_in_any_order(
    shard: ScriptedShard, client: MemoryClient, whole: bool
) -> None:
    def script(requests: Requests, _: Context) -> Iterator[Message]:
        three = [list(in_chunks(shard, request, 60 if whole else 7)) for request in islice(requests, 3)]
        while any(three):
            for chunks in reversed(three):
                yield from chunks[:1]
                del chunks[:1]
        yield from shard.honest(requests, _)

    shard.script = script
    asked = [IDS[:20], IDS[10:60], IDS[30:35]]
    for ids, future in zip(asked, [client.lookup(SPEC.name, ids) for ids in asked], strict=True):
        rows = future.result()
        np.testing.assert_array_equal(rows.unique[rows.inverse], PACKED[ids])


def test_a_reply_that_begins_again_makes_those_before_it_void(shard: ScriptedShard, client: MemoryClient) -> None:
    def script(requests: Requests, _: Context) -> Iterator[Message]:
        for request in requests:
            wrong = bytes(20 * SPEC.row_bytes)
            yield shard.reply(request, 0, 20, rows=wrong, version=1)
            yield shard.reply(request, 20, 40, rows=wrong, version=1)
            yield shard.reply(request, 0, 30, version=2)
            yield shard.reply(request, 30, version=2)

    shard.script = script
    np.testing.assert_array_equal(rows_of(client), PACKED[IDS])


def test_rows_of_one_lookup_are_of_one_version(shard: ScriptedShard, implementation: str) -> None:
    """Two requests of a lookup are answered with different versions: it begins again, and ends in the newer one."""
    config = ClientConfig(request_rows=30, lookup_timeout_s=20)
    client = MemoryClient.connect(shard.address, config=config)
    newer = PACKED ^ 255

    def script(requests: Requests, _: Context) -> Iterator[Message]:
        for number, request in enumerate(requests):
            if number == 0:
                yield shard.reply(request, version=1)
            else:
                yield shard.reply(request, version=2, rows=newer[shard.ids(request)].tobytes())

    shard.script = script
    try:
        np.testing.assert_array_equal(rows_of(client), newer[IDS])
    finally:
        client.close()
    assert len(shard.requests) >= 4


ROW = SPEC.row_bytes
Answers = Callable[[ScriptedShard, pb.LookupRequest], list[Message]]
MALFORMED: dict[str, Answers] = {
    "no message": lambda shard, asked: [b"\xff\xff\xff"],
    "a text that is not UTF-8": lambda shard, asked: [
        shard.reply(asked, rows=b"").SerializeToString() + b"\x1a\x01\xff"
    ],
    "a message cut short": lambda shard, asked: [shard.reply(asked).SerializeToString()[:-1]],
    "a huge claim of length": lambda shard, asked: [b"\x08\x01\x3a\xff\xff\xff\xff\xff\x7f" + bytes(50)],
    "rows before other fields": lambda shard, asked: [shard.reply(asked).SerializeToString() + b"\x20\x01"],
    "a message of more than 4 MiB": lambda shard, asked: [shard.reply(asked, message="x" * (5 << 20))],
    "half a row": lambda shard, asked: [shard.reply(asked, rows=bytes(ROW // 2))],
    "a row and a half": lambda shard, asked: [shard.reply(asked, 0, 1), shard.reply(asked, 1, rows=bytes(ROW // 2))],
    "too many rows": lambda shard, asked: [shard.reply(asked, rows=bytes(61 * ROW))],
    "too many rows at last": lambda shard, asked: [
        shard.reply(asked, 0, 30),
        shard.reply(asked, 30, rows=bytes(31 * ROW)),
    ],
    "too few rows": lambda shard, asked: [shard.reply(asked, 0, 59), shard.reply(asked, 59, 59)],
    "no rows": lambda shard, asked: [shard.reply(asked, rows=b"")],
    "rows that do not begin": lambda shard, asked: [shard.reply(asked, 30)],
    "a gap": lambda shard, asked: [shard.reply(asked, 0, 20), shard.reply(asked, 30)],
    "an overlap": lambda shard, asked: [shard.reply(asked, 0, 40), shard.reply(asked, 30)],
    "two versions": lambda shard, asked: [shard.reply(asked, 0, 30), shard.reply(asked, 30, version=2)],
    "a first row beyond all": lambda shard, asked: [
        shard.reply(asked, 0, 30),
        shard.reply(asked, 30, first_row=(1 << 64) - 1),
    ],
    "a status that there is not": lambda shard, asked: [shard.reply(asked, rows=b"", status=99, message="odd")],
    "an error after rows": lambda shard, asked: [
        shard.reply(asked, 0, 30),
        shard.reply(asked, 0, 0, status=1, message="broke"),
    ],
}


@pytest.mark.parametrize("what", MALFORMED)
def test_an_answer_that_makes_no_sense_fails_its_lookup_and_the_next_one_is_right(
    shard: ScriptedShard, client: MemoryClient, what: str
) -> None:
    healthy = False

    def script(requests: Requests, _: Context) -> Iterator[Message]:
        for request in requests:
            yield from [shard.reply(request)] if healthy else MALFORMED[what](shard, request)

    shard.script = script
    started = time.monotonic()
    with pytest.raises(MemoryServiceError):
        rows_of(client)
    assert time.monotonic() - started < 10, "at once, and not at its deadline"
    healthy = True
    np.testing.assert_array_equal(rows_of(client), PACKED[IDS])


def test_an_answer_that_makes_no_sense_fails_no_other_lookup_of_its_stream(
    shard: ScriptedShard, client: MemoryClient
) -> None:
    def script(requests: Requests, _: Context) -> Iterator[Message]:
        first, second = islice(requests, 2)
        yield shard.reply(second, 0, 20)
        yield shard.reply(first, 30)  # rows that do not begin
        yield shard.reply(second, 20)

    shard.script = script
    first, second = (client.lookup(SPEC.name, IDS) for _ in range(2))
    with pytest.raises(MemoryServiceError):
        first.result()
    rows = second.result()
    np.testing.assert_array_equal(rows.unique[rows.inverse], PACKED[IDS])


def test_replies_to_nobody_are_ignored(shard: ScriptedShard, client: MemoryClient) -> None:
    def script(requests: Requests, _: Context) -> Iterator[Message]:
        for request in requests:
            yield shard.reply(request, request_id=request.request_id + 1000, rows=bytes(60 * ROW))
            yield shard.reply(request)
            yield shard.reply(request, rows=bytes(60 * ROW))  # a second answer

    shard.script = script
    for _ in range(3):
        np.testing.assert_array_equal(rows_of(client), PACKED[IDS])


@pytest.mark.parametrize("error", [kind for kind in ERRORS if kind is not ShardUnavailable], ids=lambda k: k.__name__)
def test_a_refusal_is_raised_as_the_error_that_it_stands_for(
    shard: ScriptedShard, client: MemoryClient, error: type[MemoryServiceError]
) -> None:
    status, _ = ERRORS[error]
    refused = {"status": status, "message": "says so", "rows": b""}
    shard.script = lambda requests, _: (shard.reply(request, **refused) for request in requests)
    with pytest.raises(error, match="says so"):
        rows_of(client)
    shard.script = shard.honest
    assert len({request.request_id for request in shard.requests}) == len(shard.requests), "one stream, which goes on"


def test_a_newer_epoch_in_a_reply_lets_the_client_read_the_placement_again(
    shard: ScriptedShard, client: MemoryClient
) -> None:
    rows_of(client)
    shard.epoch = 5
    rows_of(client)
    deadline = time.monotonic() + 10
    while shard.requests[-1].epoch != 5:
        assert time.monotonic() < deadline
        rows_of(client)


def test_a_wrong_epoch_is_mended_by_the_placement_of_now(shard: ScriptedShard, client: MemoryClient) -> None:
    def script(requests: Requests, _: Context) -> Iterator[Message]:
        for request in requests:
            old = {"status": pb.STATUS_WRONG_EPOCH, "rows": b""} if request.epoch != shard.epoch else {}
            yield shard.reply(request, **old)

    shard.script, shard.epoch = script, 2
    np.testing.assert_array_equal(rows_of(client), PACKED[IDS])
    assert [request.epoch for request in shard.requests] == [1, 2]


def test_a_shard_that_stops_is_left_once_it_has_answered(shard: ScriptedShard, client: MemoryClient) -> None:
    """After the notice the client asks nothing more on this stream, takes what was under way, and ends its side."""

    def script(requests: Requests, _: Context) -> Iterator[Message]:
        request = next(requests)
        yield pb.LookupReply(status=pb.STATUS_UNAVAILABLE, message="shard-0 is stopping")
        shard.script = shard.honest
        left = list(requests)  # until the client ends its side
        yield shard.reply(request)
        ended.append(left)

    ended: list[list[pb.LookupRequest]] = []
    shard.script = script
    np.testing.assert_array_equal(rows_of(client), PACKED[IDS])
    np.testing.assert_array_equal(rows_of(client), PACKED[IDS])
    assert ended == [[]]
    assert [request.request_id for request in shard.requests] == [1, 1], "the second on a stream of its own"


def test_a_stream_that_its_shard_ends_is_opened_anew(shard: ScriptedShard, client: MemoryClient) -> None:
    shard.script = lambda requests, _: (shard.reply(request) for request in islice(requests, 1))
    for _ in range(3):
        np.testing.assert_array_equal(rows_of(client), PACKED[IDS])


def test_a_stream_that_breaks_is_opened_anew(shard: ScriptedShard, client: MemoryClient) -> None:
    def script(requests: Requests, context: Context) -> Iterator[Message]:
        request = next(requests)
        yield shard.reply(request, 0, 30)
        shard.script = shard.honest
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    shard.script = script
    np.testing.assert_array_equal(rows_of(client), PACKED[IDS])


def test_a_stream_that_always_breaks_is_an_error_that_names_the_shard(
    shard: ScriptedShard, client: MemoryClient
) -> None:
    shard.script = lambda requests, context: context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
    with pytest.raises(ShardUnavailable, match=rf"shard-0 at {shard.address}.*gone") as raised:
        rows_of(client)
    assert raised.value.shard == "shard-0"


def test_a_stream_too_many_is_told_as_such(shard: ScriptedShard, client: MemoryClient) -> None:
    def script(requests: Requests, context: Context) -> Iterator[Message]:
        context.set_trailing_metadata((("engram-status", str(int(pb.STATUS_RESOURCE_EXHAUSTED))),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "9 streams are open")

    shard.script = script
    with pytest.raises(ResourceExhausted, match="9 streams are open"):
        rows_of(client)


def test_a_shard_that_stays_silent_is_given_up(shard: ScriptedShard, implementation: str) -> None:
    def script(requests: Requests, context: Context) -> Iterator[Message]:
        request = next(requests)
        shard.script = shard.honest
        yield shard.reply(request, 0, 30)
        shard.wait()

    shard.script = script
    client = MemoryClient.connect(shard.address, config=ClientConfig(lookup_timeout_s=20, stall_s=0.2))
    try:
        np.testing.assert_array_equal(rows_of(client), PACKED[IDS])
    finally:
        client.close()


def test_a_client_that_is_closed_ends_its_stream(shard: ScriptedShard, implementation: str) -> None:
    client = MemoryClient.connect(shard.address)
    rows_of(client)
    client.close()
    deadline = time.monotonic() + 10
    while shard.open_streams:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_replies_of_random_bytes_never_hang_a_lookup_or_give_rows(shard: ScriptedShard, client: MemoryClient) -> None:
    rng = random.Random(0)

    def script(requests: Requests, _: Context) -> Iterator[Message]:
        for request in requests:
            good = shard.reply(request).SerializeToString()
            yield mutate(rng, good[: len(good) - 60 * ROW]) + good[len(good) - 60 * ROW :]
            yield shard.reply(request, rows=b"", status=pb.STATUS_INTERNAL, message="that was all")

    shard.script = script
    failed = 0
    for _ in range(300):
        try:
            np.testing.assert_array_equal(rows_of(client), PACKED[IDS])
        except MemoryServiceError:
            failed += 1
    assert 30 < failed < 300
