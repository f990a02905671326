"""The rows door as a stranger meets it: raw Flight, hostile frames included. A proper lookup works afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import flight

from memory_service import TableSpec
from memory_service.server.rows_door import QueueClock
from memory_service.shard.shard import ShardConfig
from protos import memory_pb2 as pb

IDS = pa.schema([("row", pa.int64())])


class Raw:
    """One stream, without any of the client's care."""

    def __init__(self, port: int, stack: ExitStack, schema: pa.Schema = IDS, path: tuple[bytes, ...] = ()) -> None:
        client = stack.enter_context(closing(flight.FlightClient(("127.0.0.1", port))))
        descriptor = flight.FlightDescriptor.for_path(*(path or (b"lookup", b"engram.1")))
        self.writer, self.reader = client.do_exchange(descriptor)
        stack.callback(self._close)
        self.schema = schema
        self.writer.begin(schema)

    def _close(self) -> None:
        try:
            self.writer.close()
        except pa.ArrowException:
            return

    def send(self, values: object, header: bytes | pb.LookupRequest | None) -> None:
        batch = pa.record_batch([pa.array(values, self.schema.field(0).type)], schema=self.schema)
        if header is None:
            self.writer.write_batch(batch)
        else:
            self.writer.write_with_metadata(batch, header if isinstance(header, bytes) else header.SerializeToString())

    def receive(self) -> tuple[pb.LookupReply, pa.RecordBatch]:
        chunk = self.reader.read_chunk()
        return pb.LookupReply.FromString(chunk.app_metadata.to_pybytes()), chunk.data


@pytest.fixture
def port(cluster, packed: np.ndarray, spec: TableSpec) -> Iterator[int]:
    cluster.start(1, config=ShardConfig(max_rows=100))
    yield cluster.servers[0].rows_port
    rows = cluster.connect().lookup("engram.1", np.arange(50)).result()
    np.testing.assert_array_equal(rows.unique, packed[:50])


@pytest.fixture
def header(spec: TableSpec) -> pb.LookupRequest:
    fingerprint = bytes.fromhex(spec.fingerprint)
    return pb.LookupRequest(request_id=9, epoch=1, fingerprint=fingerprint, timeout_ms=60_000)


def changed(header: pb.LookupRequest, **fields: object) -> pb.LookupRequest:
    other = pb.LookupRequest()
    other.CopyFrom(header)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def test_rows_come_back_in_order_with_their_request_id(
    port: int, stack: ExitStack, header: pb.LookupRequest, packed: np.ndarray
) -> None:
    raw = Raw(port, stack)
    for request_id in (3, 1, 2):
        raw.send([request_id, 7], changed(header, request_id=request_id))
    for request_id in (3, 1, 2):
        reply, batch = raw.receive()
        assert (reply.request_id, reply.status, reply.epoch, reply.version) == (request_id, pb.STATUS_OK, 1, 0)
        assert batch.schema.field("row").type == pa.binary(128)
        assert batch["row"].to_pylist() == [packed[request_id].tobytes(), packed[7].tobytes()]


def test_every_refusal_is_a_counted_reply_and_the_stream_goes_on(
    port: int, stack: ExitStack, header: pb.LookupRequest, packed: np.ndarray, cluster
) -> None:
    raw = Raw(port, stack)
    cases: list[tuple[object, bytes | pb.LookupRequest | None, int, str]] = [
        ([1650], header, pb.STATUS_ROW_OUT_OF_RANGE, "1649, requested row 1650"),
        ([0, -1], header, pb.STATUS_ROW_OUT_OF_RANGE, "requested row -1"),
        ([0], changed(header, fingerprint=b"other"), pb.STATUS_FINGERPRINT_MISMATCH, "engram.1"),
        ([0], changed(header, epoch=7), pb.STATUS_WRONG_EPOCH, "serves epoch 1, asked under epoch 7"),
        ([0] * 101, header, pb.STATUS_REQUEST_TOO_LARGE, "takes 100"),
        ([0, None], header, pb.STATUS_INVALID_REQUEST, "1 nulls"),
        ([0], b"\xff\xff\xff", pb.STATUS_INVALID_REQUEST, "no LookupRequest"),
        ([0], None, pb.STATUS_INVALID_REQUEST, "no LookupRequest"),
    ]
    for values, sent, status, message in cases:
        raw.send(values, sent)
        reply, batch = raw.receive()
        assert reply.status == status, reply
        assert message in reply.message
        assert batch.num_rows == 0
    raw.send([5], header)
    assert raw.receive()[1]["row"].to_pylist() == [packed[5].tobytes()]
    counted = cluster.servers[0].shard.stats()
    assert counted.refused_by == {
        "row_out_of_range": 2,
        "fingerprint_mismatch": 1,
        "wrong_epoch": 1,
        "request_too_large": 1,
        "invalid_request": 3,
    }
    assert (counted.refused, counted.requests, counted.streams) == (8, 1, 1)


def assert_refused(raw: Raw, message: str) -> None:
    """A stream that no lookup can come from is told why, and ended."""
    with pytest.raises(flight.FlightError, match=message) as raised:
        raw.receive()
    assert "Traceback" not in str(raised.value)


@pytest.mark.parametrize("kind", [pa.int32(), pa.float64(), pa.string()])
def test_ids_of_another_type_are_refused(
    port: int, stack: ExitStack, header: pb.LookupRequest, kind: pa.DataType
) -> None:
    raw = Raw(port, stack, pa.schema([("row", kind)]))
    with suppress(pa.ArrowException):  # the stream may have ended already
        raw.send(["1"] if kind == pa.string() else [1], header)
    assert_refused(raw, f"of int64, got row: {kind}")


def test_two_columns_are_refused(port: int, stack: ExitStack, header: pb.LookupRequest) -> None:
    raw = Raw(port, stack, pa.schema([("row", pa.int64()), ("other", pa.int64())]))
    batch = pa.record_batch([pa.array([1]), pa.array([2])], schema=raw.schema)
    with suppress(pa.ArrowException):
        raw.writer.write_with_metadata(batch, header.SerializeToString())
    assert_refused(raw, "one column, 'row', of int64, got row: int64, other: int64")


def test_dictionaries_are_refused(port: int, stack: ExitStack, header: pb.LookupRequest) -> None:
    raw = Raw(port, stack, pa.schema([("row", pa.dictionary(pa.int8(), pa.int64()))]))
    with suppress(pa.ArrowException):
        raw.send(pa.array([1, 1]).dictionary_encode().cast(raw.schema.field(0).type), header)
    assert_refused(raw, "dictionary")


def test_a_huge_header_is_refused(port: int, stack: ExitStack, header: pb.LookupRequest) -> None:
    raw = Raw(port, stack)
    raw.send([1], changed(header, fingerprint=bytes(5000)))
    reply, _ = raw.receive()
    assert (reply.request_id, reply.status) == (0, pb.STATUS_REQUEST_TOO_LARGE)
    assert "a LookupRequest at most 1024" in reply.message


def test_a_sliced_batch_reads_from_its_offset(
    port: int, stack: ExitStack, header: pb.LookupRequest, packed: np.ndarray
) -> None:
    raw = Raw(port, stack)
    batch = pa.record_batch([pa.array(range(20), pa.int64())], schema=IDS).slice(8, 3)
    raw.writer.write_with_metadata(batch, header.SerializeToString())
    assert raw.receive()[1]["row"].to_pylist() == [row.tobytes() for row in packed[8:11]]


def test_metadata_without_ids_is_refused(port: int, stack: ExitStack, header: pb.LookupRequest) -> None:
    raw = Raw(port, stack)
    raw.writer.write_metadata(header.SerializeToString())
    reply, _ = raw.receive()
    assert (reply.request_id, reply.status) == (9, pb.STATUS_INVALID_REQUEST)


@pytest.mark.parametrize("path", [(b"lookup",), (b"push", b"engram.1"), (b"lookup", b"engram.9")])
def test_an_unknown_descriptor_ends_the_stream_with_a_reason(
    port: int, stack: ExitStack, path: tuple[bytes, ...]
) -> None:
    with pytest.raises((pa.ArrowException, flight.FlightError), match=r"descriptor path|no table"):
        Raw(port, stack, path=path).receive()


def test_an_expired_request_is_dropped_and_counted(
    port: int, stack: ExitStack, header: pb.LookupRequest, cluster, packed: np.ndarray
) -> None:
    raw = Raw(port, stack)
    raw.send([1], changed(header, request_id=1, sent_us=10_000_000))
    # Sent, by its own account, ten seconds before the first one, with a second to live: it waited in a queue since.
    raw.send([2], changed(header, request_id=2, sent_us=1, timeout_ms=1000))
    raw.send([3], changed(header, request_id=3, sent_us=10_000_000))
    assert [raw.receive()[0].request_id for _ in range(2)] == [1, 3]
    assert cluster.servers[0].shard.stats().expired == 1


def test_queue_clock_needs_no_common_origin() -> None:
    clock = QueueClock()
    assert clock.waited_us(sent_us=5_000, now_us=1_000_900) == 0
    assert clock.waited_us(sent_us=6_000, now_us=1_002_900) == 1_000
    assert clock.waited_us(sent_us=7_000, now_us=1_002_400) == 0
    assert clock.waited_us(sent_us=8_000, now_us=1_004_400) == 1_000


def test_methods_that_a_shard_does_not_have_are_refused_without_a_traceback(port: int) -> None:
    with closing(flight.FlightClient(("127.0.0.1", port))) as client:
        for call in (client.list_flights, client.list_actions, lambda: client.do_action(flight.Action("drop", b""))):
            with pytest.raises(flight.FlightServerError, match="a shard has no method") as raised:
                list(call())
            assert "Traceback" not in str(raised.value)


def test_text_that_is_not_utf8_is_an_invalid_request(port: int, stack: ExitStack) -> None:
    raw = Raw(port, stack)
    raw.send([0], b"\x12\x01\xff")
    assert raw.receive()[0].status == pb.STATUS_INVALID_REQUEST


def test_a_stopping_shard_says_goodbye_to_every_stream(cluster, stack: ExitStack) -> None:
    server = cluster.start(1).servers[0]
    raws = [Raw(server.rows_port, stack) for _ in range(3)]
    for raw in raws:
        raw.send([0], b"")
        raw.receive()
    assert not server.stop(0.2)  # these clients ignore it, and the shard does not wait for them
    for raw in raws:
        reply, _ = raw.receive()
        assert (reply.request_id, reply.status) == (0, pb.STATUS_UNAVAILABLE)
        assert "shard-0 is stopping" in reply.message
