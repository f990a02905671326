"""What a shard takes from another one, which may send anything: whole blocks, in order, of one version, or an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest
import xxhash

from memory_service import InvalidRequest, MemoryServiceError, TableSpec, UnknownTable
from memory_service.protocol import row_messages
from memory_service.shard.block_copy import give_blocks, take_blocks
from memory_service.shard.table import ShardTable
from protos import memory_pb2 as pb

VERSION = 3
BLOCKS = [25, 3]  # the first is the short last block of the table


class Broken(grpc.RpcError):
    """An error in which a call ends."""

    def __init__(self, details: str, trailing: tuple[tuple[str, str], ...] = ()) -> None:
        self._details, self._trailing = details, trailing

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._trailing


class Call:
    """A call that yields these messages, and raises those that are errors."""

    def __init__(self, messages: list[bytes | Exception]) -> None:
        self._messages = iter(messages)
        self.cancelled = False

    def __next__(self) -> bytes:
        message = next(self._messages)
        if isinstance(message, Exception):
            raise message
        return message

    def cancel(self) -> None:
        self.cancelled = True


class Peer:
    """The channel to another shard, which answers each request for blocks with a script."""

    def __init__(self, script: Callable[[pb.BlocksRequest], list[bytes | Exception]]) -> None:
        self._script = script
        self.asked: list[pb.BlocksRequest] = []
        self.calls: list[Call] = []

    def unary_stream(self, method: str) -> Callable[..., Call]:
        assert method == "/engram.memory.v1.Rows/Blocks"

        def call(message: bytes, timeout: float) -> Call:
            assert timeout > 0
            self.asked.append(pb.BlocksRequest.FromString(message))
            self.calls.append(Call(self._script(self.asked[-1])))
            return self.calls[-1]

        return call


@pytest.fixture
def table(spec: TableSpec, packed: np.ndarray) -> ShardTable:
    table = ShardTable(spec, VERSION)
    table.add((block, packed[block * 64 : block * 64 + 64]) for block in range(spec.blocks))
    return table


@pytest.fixture
def chunks(table: ShardTable, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The blocks in chunks of 30 rows: two of the short one, three of the other."""
    monkeypatch.setattr(row_messages, "CHUNK_BYTES", 30 * 128)
    return list(give_blocks(table, BLOCKS))


def take(spec: TableSpec, messages: list[bytes | Exception]) -> dict[int, np.ndarray]:
    peer = Peer(lambda _: messages)
    try:
        return {block: rows.copy() for block, rows in take_blocks(peer, spec, VERSION, BLOCKS)}  # type: ignore[arg-type]
    finally:
        assert all(call.cancelled for call in peer.calls)


def changed(message: bytes, **changes: object) -> bytes:
    chunk = pb.BlockChunk.FromString(message)
    for name, value in changes.items():
        setattr(chunk, name, value)
    return chunk.SerializeToString()


def test_blocks_are_sent_in_chunks_and_put_together(spec: TableSpec, packed: np.ndarray, chunks: list[bytes]) -> None:
    parts = [pb.BlockChunk.FromString(chunk) for chunk in chunks]
    assert [(part.block, part.first_row, len(part.rows)) for part in parts] == [
        *((25, 0, 3840), (25, 30, 2560)),
        *((3, 0, 3840), (3, 30, 3840), (3, 60, 512)),
    ]
    assert {part.digest for part in parts[2:]} == {xxhash.xxh3_128_digest(packed[192:256].tobytes())}
    taken = take(spec, chunks)
    assert list(taken) == BLOCKS
    np.testing.assert_array_equal(taken[25], packed[1600:])
    np.testing.assert_array_equal(taken[3], packed[192:256])


def test_blocks_are_asked_for_a_group_at_a_time(
    spec: TableSpec, packed: np.ndarray, table: ShardTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memory_service.shard.block_copy._CALL_BYTES", 2 * 64 * 128)
    peer = Peer(lambda wanted: list(give_blocks(table, wanted.blocks)))
    taken = {block: rows.copy() for block, rows in take_blocks(peer, spec, VERSION, [4, 9, 1, 7, 2])}  # type: ignore[arg-type]
    assert [list(wanted.blocks) for wanted in peer.asked] == [[4, 9], [1, 7], [2]]
    assert {wanted.fingerprint.hex() for wanted in peer.asked} == {spec.fingerprint}
    for block, rows in taken.items():
        np.testing.assert_array_equal(rows, packed[block * 64 : block * 64 + 64])


def faults(chunks: list[bytes]) -> Iterator[tuple[list[bytes | Exception], type[Exception], str]]:
    first, second, *rest = chunks
    flipped = second[:-1] + bytes((second[-1] ^ 1,))
    yield (
        [second, first, *rest],
        InvalidRequest,
        "got 20 rows from row 30 of block 25 on, expected at most 50",
    )
    yield [first, first, second, *rest], InvalidRequest, "from row 0 of block 25 on, expected at most 20 from row 30"
    yield [*rest, first, second], InvalidRequest, "of block 3 on, expected at most 50 from row 0 on"
    yield [first, changed(second, rows=bytes(21 * 128)), *rest], InvalidRequest, "got 21 rows"
    yield [first, changed(second, rows=b""), *rest], InvalidRequest, "got 0 rows"
    yield [first, changed(second, rows=bytes(100)), *rest], InvalidRequest, "100 bytes of rows of 128 bytes"
    yield [first, flipped, *rest], MemoryServiceError, "block 25: the checksum does not match"
    yield [first, changed(second, digest=bytes(16)), *rest], MemoryServiceError, "checksum"
    yield [first, changed(second, version=4), *rest], MemoryServiceError, "got version 4, not 3"
    yield [first, b"\xff\xff", *rest], InvalidRequest, "not a BlockChunk"
    yield [first], MemoryServiceError, "sent fewer than 2 blocks"
    yield [first, Broken("reset")], MemoryServiceError, "the copy broke off: reset"
    yield [Broken("no table", (("engram-status", "4"),))], UnknownTable, "no table"


@pytest.mark.parametrize("number", range(13))
def test_what_is_no_whole_block_is_refused(spec: TableSpec, chunks: list[bytes], number: int) -> None:
    messages, error, message = list(faults(chunks))[number]
    with pytest.raises(error, match=message):
        take(spec, messages)
