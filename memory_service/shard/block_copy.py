"""Copies of whole blocks from shard to shard over Arrow Flight: the sending side, and the receiving side's checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import xxhash
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from pyarrow import flight

from memory_service.errors import InvalidRequest, MemoryServiceError
from memory_service.shard.table import ShardTable
from memory_service.tables.arrow_rows import row_schema, view_rows, wrap_rows
from memory_service.tables.spec import TableSpec
from protos import memory_pb2 as pb

_CALL_BYTES = 32 << 20  # of the blocks requested in one call, so that a shard that hangs is soon abandoned
_CALL_S = 30.0


def give_blocks(table: ShardTable, blocks: Sequence[int]) -> Iterator[tuple[pa.RecordBatch, pa.Buffer]]:
    """Send blocks of a table. Each is copied in its turn, so that a slow receiver keeps no block from being dropped.

    Args:
        table: the table.
        blocks: numbers of the blocks.

    Yields:
        A record batch with the block's rows, and its serialised BlockHeader.

    Raises:
        RowOutOfRange: a block is not held any more.
    """
    schema = row_schema(table.spec.row_bytes)
    for block in blocks:
        rows = table.copy_block(block)
        header = pb.BlockHeader(block=block, version=table.version, digest=xxhash.xxh3_128_digest(rows.data))
        yield wrap_rows(rows, schema), pa.py_buffer(header.SerializeToString())


def take_blocks(
    client: flight.FlightClient, spec: TableSpec, version: int, blocks: Sequence[int]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Receive blocks from another shard, in order.

    Args:
        client: connection to the rows door of the other shard.
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
    for start in range(0, len(blocks), at_once):
        yield from _take_group(client, spec, version, blocks[start : start + at_once])


def _take_group(
    client: flight.FlightClient, spec: TableSpec, version: int, blocks: Sequence[int]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    wanted = pb.BlocksTicket(table=spec.name, fingerprint=bytes.fromhex(spec.fingerprint), blocks=blocks)
    options = flight.FlightCallOptions(timeout=_CALL_S)
    try:
        reader = client.do_get(flight.Ticket(wanted.SerializeToString()), options)
        for block in blocks:
            yield block, _checked(reader.read_chunk(), spec, version, block)
    except StopIteration as error:
        raise MemoryServiceError(f"table {spec.name!r}: the shard sent fewer than {len(blocks)} blocks") from error
    except (pa.ArrowException, OSError, DecodeError) as error:
        raise MemoryServiceError(f"table {spec.name!r}: the copy broke off: {error}") from error


def _checked(chunk: flight.FlightStreamChunk, spec: TableSpec, version: int, block: int) -> NDArray[np.uint8]:
    if chunk.data is None or chunk.app_metadata is None:
        raise InvalidRequest(f"table {spec.name!r} block {block}: rows and header must come together")
    header = pb.BlockHeader.FromString(chunk.app_metadata.to_pybytes())
    rows = view_rows(chunk.data, spec.row_bytes)
    if header.block != block or len(rows) != spec.block_length(block):
        raise InvalidRequest(f"table {spec.name!r} block {block}: got {len(rows)} rows of block {header.block}")
    if header.version != version:
        raise MemoryServiceError(f"table {spec.name!r} block {block}: got version {header.version}, not {version}")
    if header.digest != xxhash.xxh3_128_digest(rows.data):
        raise MemoryServiceError(f"table {spec.name!r} block {block}: the checksum does not match")
    return rows
