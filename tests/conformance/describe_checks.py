"""Checks of MemoryShard.Describe: all that a client needs in order to look rows up."""

from __future__ import annotations

from tests.conformance.check import check, expect, expect_that
from tests.conformance.memory import Memory


@check
def describe_names_the_shard_and_its_rows_port(memory: Memory) -> None:
    """DescribeReply has the shard's name, its incarnation, a rows port and its implementation."""
    described = memory.described
    expect_that("a name in shard", bool(described.shard), described.shard)
    expect_that("an incarnation", bool(described.incarnation), described.incarnation)
    expect_that("a port in rows_port", 0 < described.rows_port < 1 << 16, described.rows_port)
    expect_that("an implementation", bool(described.implementation), described.implementation)
    expect("the incarnation, asked again", memory.describe().incarnation, described.incarnation)


@check
def placement_says_where_every_block_is(memory: Memory) -> None:
    """TablePlacement.shards is little-endian uint16 [replicas, blocks], and this shard holds what it is assigned."""
    placement = memory.described.placement
    expect_that("an epoch above 0", placement.epoch > 0, placement.epoch)
    names = [shard.shard for shard in placement.shards]
    expect_that(f"{memory.described.shard!r} among the shards", memory.described.shard in names, names)
    held = {table.spec.name: table for table in memory.described.tables}
    for assigned in placement.tables:
        expect_that(f"table {assigned.table!r} among those described", assigned.table in held, sorted(held))
        table = held[assigned.table]
        blocks = -(-sum(table.spec.column_rows) // table.spec.block_rows)
        expect(f"bytes of shards of {assigned.table!r}", len(assigned.shards), 2 * assigned.replicas * blocks)
        indices = [int.from_bytes(assigned.shards[at : at + 2], "little") for at in range(0, len(assigned.shards), 2)]
        expect_that(f"indices below {len(names)}", max(indices) < len(names), max(indices))
        mine = {at % blocks for at, index in enumerate(indices) if names[index] == memory.described.shard}
        missing = sorted(mine - set(table.blocks))
        expect(f"blocks of {assigned.table!r} that are assigned and not held", missing, [])


@check
def tables_are_described_whole(memory: Memory) -> None:
    """HeldTable has a fingerprint of 32 bytes, the bytes of a row, and its blocks in ascending order."""
    expect_that("a table with blocks", bool(memory.tables), memory.described.shard)
    for table in memory.tables:
        expect(f"bytes of the fingerprint of {table.name!r}", len(table.fingerprint), 32)
        expect_that("row_bytes above 0", table.row_bytes > 0, table.row_bytes)
        blocks = list(table.held.blocks)
        expect(f"blocks of {table.name!r}", blocks, sorted(set(blocks)))
        expect_that(f"blocks below {table.blocks}", blocks[-1] < table.blocks, blocks[-1])
