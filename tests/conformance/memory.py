"""One shard of a running memory as a stranger meets it: generated stubs, plain grpcio and protos/memory.proto."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from protos import memory_pb2 as pb
from protos import memory_pb2_grpc

LOOKUP, BLOCKS = "/engram.memory.v1.Rows/Lookup", "/engram.memory.v1.Rows/Blocks"
REPLY_BYTES = 4 << 20
"""Bytes that every reply stays below."""
CALL_S = 30.0
"""Seconds for one call, so that a shard that never answers fails a check instead of holding it up."""


@dataclass(frozen=True)
class Keys:
    """What a shard asks of its callers."""

    tls: grpc.ChannelCredentials | None = None
    server_name: str = ""
    token: str = ""

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """Metadata of every call."""
        return [("authorization", f"Bearer {self.token}")] if self.token else []

    def channel(self, address: str, compression: grpc.Compression | None = None) -> grpc.Channel:
        """A connection of its own to a port; messages are sent with that compression."""
        options: list[tuple[str, Any]] = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", REPLY_BYTES + 4096),
        ]
        if self.server_name:
            options.append(("grpc.ssl_target_name_override", self.server_name))
        if self.tls is None:
            return grpc.insecure_channel(address, options, compression)
        return grpc.secure_channel(address, self.tls, options, compression)


class Memory:
    """A shard, found by the address of its control door; closes its connections at the end of a `with`."""

    def __init__(self, address: str, keys: Keys | None = None) -> None:
        self.address = address
        self.keys = keys or Keys()
        self._control = self.keys.channel(address)
        self.control = memory_pb2_grpc.MemoryShardStub(self._control)
        self.described = self.describe()
        self.rows_address = f"{address.rpartition(':')[0]}:{self.described.rows_port}"
        self.rows = self.keys.channel(self.rows_address)

    def describe(self) -> pb.DescribeReply:
        """Who the shard is and what it holds, as it says now."""
        return self.control.Describe(pb.DescribeRequest(), timeout=CALL_S, metadata=self.keys.metadata)

    @property
    def epoch(self) -> int:
        """The active epoch."""
        return self.described.placement.epoch

    @property
    def tables(self) -> list[Table]:
        """The tables of which the shard holds blocks, the one with the longest rows first."""
        tables = [Table(held) for held in self.described.tables if held.blocks]
        return sorted(tables, key=lambda table: -table.row_bytes)

    @property
    def table(self) -> Table:
        """The table that checks use where any will do."""
        return self.tables[0]

    def stream(self, channel: grpc.Channel | None = None) -> Stream:
        """Open a stream of lookups."""
        return Stream(channel or self.rows, self.keys.metadata)

    def request(self, table: Table, ids: Sequence[int], request_id: int = 1, /, **changes: Any) -> pb.LookupRequest:
        """A proper request, except for the changes."""
        fields: dict[str, Any] = {
            "request_id": request_id,
            "table": table.name,
            "fingerprint": table.fingerprint,
            "epoch": self.epoch,
            "timeout_ms": 60_000,
            "row_ids": table.encode(ids),
        }
        return pb.LookupRequest(**{**fields, **changes})

    def lookup(self, table: Table, ids: Sequence[int]) -> Answer:
        """Look rows up on a stream of their own."""
        with self.stream() as stream:
            stream.send(self.request(table, ids))
            return stream.answer(1, len(ids), table.row_bytes)

    def blocks(self, message: pb.BlocksRequest | bytes) -> Iterator[bytes]:
        """The chunks that answer a request for blocks, serialised as they came."""
        call = self.rows.unary_stream(BLOCKS, request_serializer=serialise)
        return call(message, timeout=CALL_S, metadata=self.keys.metadata)

    def block_rows(self, table: Table, block: int) -> bytes:
        """All rows of a block, read by the method Blocks."""
        wanted = pb.BlocksRequest(table=table.name, fingerprint=table.fingerprint, blocks=[block])
        return b"".join(pb.BlockChunk.FromString(chunk).rows for chunk in self.blocks(wanted))

    def close(self) -> None:
        """Close the connections."""
        self._control.close()
        self.rows.close()

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Table:
    """A table as a shard describes it."""

    def __init__(self, held: pb.HeldTable) -> None:
        self.held = held
        self.name, self.fingerprint, self.version = held.spec.name, held.fingerprint, held.version
        self.row_bytes, self.block_rows = held.row_bytes, held.spec.block_rows
        self.rows = sum(held.spec.column_rows)
        self.blocks = -(-self.rows // self.block_rows)
        self.id_bytes = 4 if self.rows <= 1 << 32 else 8

    def encode(self, ids: Iterable[int]) -> bytes:
        """Row ids as LookupRequest.row_ids carries them."""
        return b"".join(number.to_bytes(self.id_bytes, "little") for number in ids)

    def ids_of(self, block: int) -> range:
        """Row ids of a block."""
        return range(block * self.block_rows, min(self.rows, (block + 1) * self.block_rows))

    def some_ids(self, count: int) -> list[int]:
        """Ids of held rows, in no order and with repeats."""
        blocks = self.held.blocks
        ranges = [self.ids_of(blocks[7 * number % len(blocks)]) for number in range(count)]
        return [ids[977 * number % len(ids)] for number, ids in enumerate(ranges)]


@dataclass(frozen=True)
class Answer:
    """The replies to one request, all with STATUS_OK."""

    replies: Sequence[pb.LookupReply]
    serialised: Sequence[bytes]

    @property
    def rows(self) -> bytes:
        """The rows, without gaps."""
        return b"".join(reply.rows for reply in self.replies)


class Refused(Exception):  # noqa: N818 - the name says what happened
    """A request was answered with a status other than STATUS_OK."""

    def __init__(self, reply: pb.LookupReply) -> None:
        super().__init__(f"{pb.Status.Name(reply.status)}: {reply.message}")
        self.reply = reply


class Stream:
    """A call of Rows.Lookup; what is sent need not make sense."""

    def __init__(self, channel: grpc.Channel, metadata: Sequence[tuple[str, str]], timeout_s: float = CALL_S) -> None:
        self._outbox: queue.SimpleQueue[pb.LookupRequest | bytes | None] = queue.SimpleQueue()
        method = channel.stream_stream(LOOKUP, request_serializer=serialise)
        self.call = method(iter(self._outbox.get, None), timeout=timeout_s, metadata=metadata)

    def send(self, message: pb.LookupRequest | bytes) -> None:
        """Send a message."""
        self._outbox.put(message)

    def end(self) -> None:
        """End the client's side."""
        self._outbox.put(None)

    def read(self) -> bytes:
        """The next reply as it came; StopIteration once the shard has ended the stream with OK."""
        return next(self.call)

    def receive(self) -> pb.LookupReply:
        """The next reply."""
        return pb.LookupReply.FromString(self.read())

    def answer(self, request_id: int, count: int, row_bytes: int) -> Answer:
        """The rows of a request to which the next replies belong.

        Raises:
            Refused: they are an error.
        """
        messages: list[bytes] = []
        replies: list[pb.LookupReply] = []
        while not replies or sum(len(reply.rows) for reply in replies) < count * row_bytes:
            message = self.read()
            reply = pb.LookupReply.FromString(message)
            if reply.status != pb.STATUS_OK:
                raise Refused(reply)
            if not reply.first_row:  # the first one, or the table has changed and the shard begins again
                messages, replies = [], []
            messages.append(message)
            replies.append(reply)
            if reply.request_id != request_id or not reply.rows:
                break  # nothing, or something that does not fit: the caller's expectations say what is wrong
        return Answer(replies, messages)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self.call.cancel()


def serialise(message: Any) -> bytes:
    """A message as it travels; bytes as they are."""
    return message if isinstance(message, bytes) else message.SerializeToString()


def error_of(end: Callable[[], object]) -> tuple[grpc.StatusCode, int | None, str]:
    """The code in which a call ends, the status in its trailing metadata, and its details; OK if it ends in none."""
    try:
        end()
    except StopIteration:
        return grpc.StatusCode.OK, None, ""
    except grpc.RpcError as error:
        status = dict(error.trailing_metadata() or ()).get("engram-status")
        return error.code(), None if status is None else int(status), error.details() or ""
    return grpc.StatusCode.OK, None, ""
