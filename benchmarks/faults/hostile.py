"""Valid requests to both doors of a shard, and hostile ones made from them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from numpy.typing import NDArray

from benchmarks.faults.mutations import encode_field, mutate, reorder
from memory_service import InvalidRequest, Placement, TableSpec
from memory_service.protocol.messages import placement_from_proto, placement_to_proto
from memory_service.protocol.row_messages import BLOCKS, LOOKUP, ids_to_bytes
from protos import memory_pb2 as pb

_CONTROL = pb.DESCRIPTOR.services_by_name["MemoryShard"]
_TOO_LONG = 9 << 20  # bytes of a message, more than a shard reads by default
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
            if len(messages[index]) < _TOO_LONG:
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
        """Streams of several lookups, requests for blocks, and both to methods that are not there."""
        rng, rows = np.random.default_rng(0), self._spec.rows
        lookups = [
            self._lookup(number, rng.integers(0, rows, count)) for number, count in enumerate((20, 1, 0, 3000), 1)
        ]
        blocks = self._blocks(range(3))
        claims = [lookups[0][:-80], encode_field(2, self._spec.name.encode())]  # of a length that is not there
        huge = [
            claim + b"\x42" + length for claim in claims for length in (b"\xff\xff\xff\xff\x07", b"\xff" * 9 + b"\x01")
        ]
        streams = [tuple(lookups), tuple(lookups[:1]), (lookups[1], lookups[0]), tuple(lookups[:1]) * 30]
        calls = [Request("rows", LOOKUP, stream) for stream in streams * 3]
        calls += [Request("rows", LOOKUP, (lookups[0], claim, lookups[1])) for claim in huge]
        calls += [Request("rows", BLOCKS, (blocks,))] * 5
        crossed = [Request("rows", LOOKUP, (blocks, lookups[0])), Request("rows", BLOCKS, (lookups[0],))]
        too_long = Request("rows", LOOKUP, (lookups[0], bytes(_TOO_LONG)))
        return [*calls, *crossed, too_long, Request("rows", LOOKUP, ()), Request("rows", f"{LOOKUP}s", streams[0])]

    def _lookup(self, request_id: int, ids: NDArray[np.int64]) -> bytes:
        return pb.LookupRequest(
            request_id=request_id,
            table=self._spec.name,
            fingerprint=bytes.fromhex(self._spec.fingerprint),
            epoch=self._placement.epoch,
            timeout_ms=60_000,
            row_ids=ids_to_bytes(ids, self._spec.rows),
        ).SerializeToString()

    def _blocks(self, blocks: Iterable[int]) -> bytes:
        fingerprint = bytes.fromhex(self._spec.fingerprint)
        return pb.BlocksRequest(table=self._spec.name, fingerprint=fingerprint, blocks=blocks).SerializeToString()


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
