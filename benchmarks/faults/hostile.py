"""Valid requests to both doors of a shard, and hostile ones made from them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from benchmarks.faults.mutations import encode_field, mutate, reorder
from memory_service import InvalidRequest, Placement, TableSpec
from memory_service.protocol.messages import placement_from_proto, placement_to_proto
from protos import memory_pb2 as pb

FLIGHT = "/arrow.flight.protocol.FlightService/"
_CONTROL = pb.DESCRIPTOR.services_by_name["MemoryShard"]
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@dataclass(frozen=True)
class Request:
    """A request to a door: the messages of one call, or raw bytes without gRPC."""

    door: str
    """"control" or "rows"."""
    method: str
    """Path of the gRPC method; empty for raw bytes."""
    messages: tuple[bytes, ...]
    hang_up: bool = False
    """Break off in the middle."""


class Hostility:
    """An endless, seeded supply of mutated requests to the shard that serves a table under a placement."""

    def __init__(self, seed: int, spec: TableSpec, placement: Placement, snapshot: str, scratch: str) -> None:
        self._rng = random.Random(seed)
        self._spec = spec
        self._placement = placement_to_proto(placement)
        self._paths = {"snapshot_uri": snapshot, "uri": scratch}
        self._control = [*self._control_calls(), *_standard_calls()]
        self._rows = self._rows_calls()
        self._all = [message for call in (*self._control, *self._rows) for message in call.messages]

    def next(self) -> Request:
        """The next request."""
        kind = self._rng.choices(("control", "rows", "bytes"), (35, 55, 10))[0]
        if kind == "bytes":
            return self._bare_bytes()
        seeds = self._control if kind == "control" else self._rows
        while True:
            request = self._mutated(self._rng.choice(seeds))
            if not self._is_an_order(request):
                return request

    def _mutated(self, seed: Request) -> Request:
        rng = self._rng
        messages = list(seed.messages)
        if len(messages) > 1 and rng.random() < 0.25:
            messages = reorder(rng, messages)
        if messages and rng.random() < 0.9:
            index = rng.randrange(len(messages))
            messages[index] = mutate(rng, messages[index], self._all)
        return Request(seed.door, seed.method, tuple(messages), hang_up=rng.random() < 0.05)

    def _is_an_order(self, request: Request) -> bool:
        """Whether the mutated request is another valid command, which the shard may obey."""
        name = request.method.rpartition("/")[2]
        if not request.method.startswith(f"/{_CONTROL.full_name}/") or name not in _CONTROL.methods_by_name:
            return False
        kind = GetMessageClass(_CONTROL.methods_by_name[name].input_type)
        try:
            message = kind.FromString(request.messages[0])
        except (DecodeError, IndexError):
            return False
        return any(self._changes_something(field, value) for field, value in message.ListFields())

    def _changes_something(self, field: FieldDescriptor, value: Any) -> bool:
        if field.name in self._paths:  # nothing outside the scratch directory is to be read or written
            return value != self._paths[field.name] and ("/" in value or ".." in value)
        if field.message_type is not pb.Placement.DESCRIPTOR or value == self._placement:
            return False
        try:
            placement_from_proto(value)
        except InvalidRequest:
            return False
        return True

    def _bare_bytes(self) -> Request:
        rng = self._rng
        garbage = rng.randbytes(rng.choice((0, 1, 9, 100, 2000)))
        frames = b"".join(_frame(rng) for _ in range(rng.randrange(6)))
        content = rng.choice((garbage, _PREFACE + garbage, _PREFACE + frames, b"GET / HTTP/1.1\r\n\r\n" + garbage))
        return Request(rng.choice(("control", "rows")), "", (mutate(rng, content),))

    def _control_calls(self) -> list[Request]:
        return [
            Request("control", f"/{_CONTROL.full_name}/{method.name}", (self._filled(method.input_type),))
            for method in _CONTROL.methods
        ]

    def _filled(self, descriptor: Descriptor) -> bytes:
        """A request message with plausible values in every field of its type."""
        message = GetMessageClass(descriptor)()
        for field in message.DESCRIPTOR.fields:
            if field.message_type is pb.Placement.DESCRIPTOR:
                getattr(message, field.name).CopyFrom(self._placement)
            elif field.type == FieldDescriptor.TYPE_STRING:
                setattr(message, field.name, self._paths.get(field.name, self._spec.name))
            elif field.name == "epoch":
                setattr(message, field.name, self._placement.epoch)
        return message.SerializeToString()

    def _rows_calls(self) -> list[Request]:
        table = self._spec.name.encode()
        lookup = b"".join((encode_field(1, 1), encode_field(3, b"lookup"), encode_field(3, table)))
        ids = np.arange(20, dtype=np.int64)
        streams = [self._stream(lookup, pa.array(ids), compression) for compression in (None, None, "zstd", "lz4")]
        streams.append(self._stream(lookup, pa.array(ids).dictionary_encode(), None))
        streams.append(self._stream(lookup, pa.array([None, *ids.tolist()], pa.int64()), None))
        streams.append(self._stream(lookup, pa.array([[1, 2], [3]]), None))
        exchange = [Request("rows", FLIGHT + "DoExchange", stream) for stream in streams]
        fingerprint = bytes.fromhex(self._spec.fingerprint)
        ticket = pb.BlocksTicket(table=self._spec.name, fingerprint=fingerprint, blocks=range(3))
        single = {
            "DoGet": encode_field(1, ticket.SerializeToString()),
            "DoAction": encode_field(1, b"drop") + encode_field(2, table),
            "ListActions": b"",
            "ListFlights": encode_field(1, table),
            "GetFlightInfo": lookup,
            "PollFlightInfo": lookup,
            "GetSchema": lookup,
            "Handshake": encode_field(1, 1) + encode_field(2, b"secret"),
        }
        calls = [Request("rows", FLIGHT + method, (message,)) for method, message in single.items()]
        return [*exchange * 3, *calls[:1] * 5, Request("rows", FLIGHT + "DoPut", streams[0]), *calls]

    def _stream(self, descriptor: bytes, column: pa.Array, compression: str | None) -> tuple[bytes, ...]:
        """Messages of a DoExchange: schema, dictionaries where there are any, and two batches of ids."""
        schema = pa.schema([("row", column.type)])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
            for _ in range(2):
                writer.write_batch(pa.record_batch([column], schema=schema))
        messages = list(pa.ipc.MessageReader.open_stream(sink.getvalue()))
        return tuple(
            _flight_data(message, descriptor if index == 0 else b"", self._header(index) if index else b"")
            for index, message in enumerate(messages)
        )

    def _header(self, request_id: int) -> bytes:
        fingerprint = bytes.fromhex(self._spec.fingerprint)
        header = pb.LookupRequest(request_id=request_id, epoch=self._placement.epoch, fingerprint=fingerprint)
        header.timeout_ms = 60_000
        return header.SerializeToString()


def _flight_data(message: pa.ipc.Message, descriptor: bytes, metadata: bytes) -> bytes:
    fields = {1: descriptor, 2: message.metadata.to_pybytes(), 3: metadata}
    body = message.body.to_pybytes() if message.body is not None else b""
    return b"".join(encode_field(number, value) for number, value in fields.items() if value) + encode_field(1000, body)


def _standard_calls() -> list[Request]:
    health = health_pb2.HealthCheckRequest(service="engram.memory.v1.MemoryShard").SerializeToString()
    listing = reflection_pb2.ServerReflectionRequest(list_services="", host="h").SerializeToString()
    by_name = reflection_pb2.ServerReflectionRequest(file_containing_symbol=_CONTROL.full_name).SerializeToString()
    reflection = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    return [
        Request("control", "/grpc.health.v1.Health/Check", (health,)),
        Request("control", reflection, (listing, by_name)),
        Request("control", f"/{_CONTROL.full_name}/Unknown", (health,)),
    ]


def _frame(rng: random.Random) -> bytes:
    """An HTTP/2 frame that is well-formed at best."""
    payload = rng.randbytes(rng.choice((0, 4, 8, 40)))
    length = rng.choice((len(payload), len(payload), 0, (1 << 24) - 1))
    head = length.to_bytes(3, "big") + bytes((rng.randrange(12), rng.randrange(256)))
    return head + rng.choice((0, 1, 3, (1 << 31) - 1)).to_bytes(4, "big") + payload


def describe(request: Request) -> str:
    """A line that identifies a request in a report."""
    sizes: Sequence[int] = [len(message) for message in request.messages]
    return f"{request.door} {request.method or 'bare bytes'} {sizes}{' hung up' * request.hang_up}"
