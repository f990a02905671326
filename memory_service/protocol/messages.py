"""Domain objects as messages of protos/memory.proto and back; a message that makes no sense is an InvalidRequest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from memory_service.errors import InvalidRequest
from memory_service.metrics.metrics import Distribution
from memory_service.placement.placement import Placement, ShardAddress
from memory_service.protocol.reports import ShardStats
from memory_service.protocol.shared_table import SharedTable
from memory_service.snapshots.manifest import BlockEntry
from memory_service.tables.rows import RowFormat
from memory_service.tables.spec import TableSpec
from protos import memory_pb2 as pb

MAX_MESSAGE_BYTES = 64 << 20
"""Bytes of the largest message of the control door: a placement of 30 million blocks. Rows never travel there."""


@dataclass(frozen=True)
class HeldTable:
    """A table as one shard holds it."""

    spec: TableSpec
    version: int
    """Committed updates that the rows contain."""
    blocks: tuple[int, ...]
    """Numbers of the blocks held, ascending."""
    shared: SharedTable | None = None
    """How a process of the shard's machine maps the rows; None if it cannot."""


@dataclass(frozen=True)
class ShardInfo:
    """A shard's description of itself."""

    shard: str
    """Name under which placements know the shard."""
    incarnation: str
    """Identifier of this start of its server."""
    rows_port: int
    """Port of the rows door, on the host of the control door."""
    placement: Placement | None
    """Active placement; None before the first."""
    tables: Mapping[str, HeldTable]
    """Tables held, by name."""
    node: str = ""
    """Node that the shard runs on and would be lost with; empty if it is not known."""
    implementation: str = ""
    """Implementation of the rows door, "python" or "native"; empty if it is not known."""


def spec_to_proto(spec: TableSpec) -> pb.TableSpec:
    """Return the message of a table spec."""
    return pb.TableSpec(**spec.to_json())


def spec_from_proto(message: pb.TableSpec) -> TableSpec:
    """Return the table spec of a message.

    Raises:
        InvalidRequest: the message is not a possible table spec.
    """
    with _reading("table spec"):
        return TableSpec(
            name=message.name,
            layer=message.layer,
            column_rows=tuple(message.column_rows),
            max_ngram=message.max_ngram,
            heads=message.heads,
            multipliers=tuple(message.multipliers),
            pad_id=message.pad_id,
            token_map_sha256=message.token_map_sha256,
            dim=message.dim,
            row_format=RowFormat(message.row_format),
            block_rows=message.block_rows,
        )


def placement_to_proto(placement: Placement) -> pb.Placement:
    """Return the message of a placement."""
    tables = [
        pb.TablePlacement(table=name, replicas=len(assigned), shards=assigned.astype("<u2").tobytes())
        for name, assigned in placement.tables.items()
    ]
    shards = [pb.ShardAddress(shard=shard.shard, address=shard.address) for shard in placement.shards]
    return pb.Placement(epoch=placement.epoch, shards=shards, tables=tables)


def placement_from_proto(message: pb.Placement) -> Placement:
    """Return the placement of a message.

    Raises:
        InvalidRequest: the message is not a possible placement.
    """
    with _reading("placement"):
        tables = {
            table.table: np.frombuffer(table.shards, "<u2").astype(np.uint16).reshape(table.replicas, -1)
            for table in message.tables
        }
        shards = tuple(ShardAddress(shard.shard, shard.address) for shard in message.shards)
        return Placement(message.epoch, shards, tables)


def info_from_proto(reply: pb.DescribeReply) -> ShardInfo:
    """Return the description in a Describe reply.

    Raises:
        InvalidRequest: A table spec or the placement is not possible.
    """
    held = [
        HeldTable(spec_from_proto(table.spec), table.version, tuple(table.blocks), _shared_from_proto(table))
        for table in reply.tables
    ]
    return ShardInfo(
        shard=reply.shard,
        incarnation=reply.incarnation,
        rows_port=reply.rows_port,
        placement=placement_from_proto(reply.placement) if reply.HasField("placement") else None,
        tables={table.spec.name: table for table in held},
        node=reply.node,
        implementation=reply.implementation,
    )


def _shared_from_proto(table: pb.HeldTable) -> SharedTable | None:
    if not table.HasField("shared"):
        return None
    return SharedTable(**{field.name: value for field, value in table.shared.ListFields()})


def stats_to_proto(stats: ShardStats) -> pb.StatsReply:
    """Return the message of a shard's counters."""
    return pb.StatsReply(
        requests=stats.requests,
        refused=stats.refused,
        expired=stats.expired,
        rows=stats.rows,
        bytes=stats.bytes,
        refused_by=stats.refused_by,
        streams=stats.streams,
        started=stats.started,
        latency=_distribution_to_proto(stats.latency),
        stages={stage: _distribution_to_proto(spent) for stage, spent in stats.stages.items()},
        incarnation=stats.incarnation,
        block_rows=[
            pb.BlockRows(table=table, blocks=rows.keys(), rows=rows.values())
            for table, rows in stats.block_rows.items()
        ],
    )


def stats_from_proto(reply: pb.StatsReply) -> ShardStats:
    """Return the counters in a Stats reply."""
    return ShardStats(
        requests=reply.requests,
        expired=reply.expired,
        rows=reply.rows,
        bytes=reply.bytes,
        refused_by=dict(reply.refused_by),
        streams=reply.streams,
        started=reply.started,
        latency=_distribution_from_proto(reply.latency),
        stages={stage: _distribution_from_proto(spent) for stage, spent in reply.stages.items()},
        incarnation=reply.incarnation,
        block_rows={table.table: dict(zip(table.blocks, table.rows, strict=True)) for table in reply.block_rows},
    )


def _distribution_to_proto(spent: Distribution) -> pb.Distribution:
    return pb.Distribution(bounds=spent.bounds, counts=spent.counts, seconds=spent.seconds)


def _distribution_from_proto(message: pb.Distribution) -> Distribution:
    return Distribution(tuple(message.bounds), tuple(message.counts), message.seconds)


def blocks_to_proto(entries: Mapping[int, BlockEntry]) -> Iterator[pb.BlockEntry]:
    """Yield the messages of written blocks."""
    for block, entry in entries.items():
        yield pb.BlockEntry(block=block, file=entry.file, batch=entry.batch, rows=entry.rows, digest=entry.digest)


def blocks_from_proto(messages: Iterable[pb.BlockEntry]) -> dict[int, BlockEntry]:
    """Return the entries of written blocks, by block number."""
    with _reading("block entry"):
        return {m.block: BlockEntry(m.file, m.batch, m.rows, m.digest) for m in messages}


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise InvalidRequest(f"not a {what}: {error}") from error
