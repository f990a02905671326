"""Copies of whole blocks from shard to shard: the sending side, and the receiving side with its checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import numpy as np
import xxhash
from numpy.typing import NDArray

from memory_service.errors import InvalidRequest, MemoryServiceError
from memory_service.protocol.row_messages import BLOCKS, as_rows, rows_a_chunk, split_rows, with_rows
from memory_service.protocol.status import error_in
from memory_service.shard.table import ShardTable
from memory_service.tables.spec import TableSpec
from protos import memory_pb2 as pb

_CALL_BYTES = 32 << 20  # of the blocks requested in one call, so that a shard that hangs is soon abandoned
_CALL_S = 30.0


def give_blocks(table: ShardTable, blocks: Sequence[int]) -> Iterator[bytes]:
    """Yield blocks of a table as serialised BlockChunks.

    Each block is copied in its turn, so that a slow receiver keeps no block from being dropped.

    Args:
        table: the table.
        blocks: numbers of the blocks.

    Raises:
        RowOutOfRange: a block is not held any more.
    """
    size = rows_a_chunk(table.spec.row_bytes)
    for block in blocks:
        rows = table.copy_block(block)
        chunk = pb.BlockChunk(block=block, version=table.version, digest=xxhash.xxh3_128_digest(rows.data))
        for low in range(0, len(rows), size):
            chunk.first_row = low
            yield with_rows(chunk, rows[low : low + size])


def take_blocks(
    channel: grpc.Channel, spec: TableSpec, version: int, blocks: Sequence[int]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Receive blocks from another shard, in order.

    Args:
        channel: connection to the rows port of the other shard.
        spec: the table.
        version: version that the rows must have.
        blocks: numbers of the blocks.

    Yields:
        Block number and packed rows, uint8 [n, row_bytes], which are valid until the next block is requested.

    Raises:
        MemoryServiceError: the connection breaks, or a block is incomplete, of another version or has the wrong
            checksum.
    """
    at_once = max(1, _CALL_BYTES // (spec.block_rows * spec.row_bytes))
    room = np.empty((spec.block_rows, spec.row_bytes), np.uint8)
    for start in range(0, len(blocks), at_once):
        yield from _take_group(channel, spec, version, blocks[start : start + at_once], room)


def _take_group(
    channel: grpc.Channel, spec: TableSpec, version: int, blocks: Sequence[int], room: NDArray[np.uint8]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    wanted = pb.BlocksRequest(table=spec.name, fingerprint=bytes.fromhex(spec.fingerprint), blocks=blocks)
    chunks = channel.unary_stream(BLOCKS)(wanted.SerializeToString(), timeout=_CALL_S)
    try:
        for block in blocks:
            rows = room[: spec.block_length(block)]
            _fill(rows, chunks, spec, version, block)
            yield block, rows
    except StopIteration as error:
        raise MemoryServiceError(f"table {spec.name!r}: the shard sent fewer than {len(blocks)} blocks") from error
    except grpc.RpcError as error:
        raise error_in(error) or MemoryServiceError(
            f"table {spec.name!r}: the copy broke off: {error.details()}"
        ) from error
    finally:
        chunks.cancel()


def _fill(rows: NDArray[np.uint8], chunks: Any, spec: TableSpec, version: int, block: int) -> None:
    """Copy a block from its chunks, which are the next ones."""
    done = 0
    while done < len(rows):
        chunk, content = split_rows(pb.BlockChunk, next(chunks))
        part = as_rows(content, spec.row_bytes)
        if chunk.block != block or chunk.first_row != done or not 0 < len(part) <= len(rows) - done:
            raise InvalidRequest(
                f"table {spec.name!r} block {block}: got {len(part)} rows from row {chunk.first_row} of block "
                f"{chunk.block} on, expected at most {len(rows) - done} from row {done} on"
            )
        if chunk.version != version:
            raise MemoryServiceError(f"table {spec.name!r} block {block}: got version {chunk.version}, not {version}")
        rows[done : done + len(part)] = part
        done += len(part)
    if chunk.digest != xxhash.xxh3_128_digest(rows.data):
        raise MemoryServiceError(f"table {spec.name!r} block {block}: the checksum does not match")
