"""Checks of Rows.Blocks: whole blocks in the order asked for, with their digests."""

from __future__ import annotations

import xxhash

from protos import memory_pb2 as pb
from tests.conformance.check import check, expect, expect_that, told
from tests.conformance.lookup_checks import blocks_request
from tests.conformance.memory import REPLY_BYTES, Memory


@check
def blocks_come_whole_and_in_order(memory: Memory) -> None:
    """Blocks come one after the other, in chunks without gaps, with the digest of all bytes of the block."""
    for table in memory.tables:
        blocks = list(reversed(table.held.blocks))[:3]
        with told(f"blocks {blocks} of {table.name!r}"):
            messages = list(memory.blocks(blocks_request(table, blocks)))
        expect_that(f"chunks below {REPLY_BYTES} bytes", max(map(len, messages)) < REPLY_BYTES, max(map(len, messages)))
        chunks = [pb.BlockChunk.FromString(message) for message in messages]
        for block in blocks:
            size, content = len(table.ids_of(block)) * table.row_bytes, b""
            while len(content) < size:
                expect_that(f"more chunks of block {block}", bool(chunks), chunks)
                chunk = chunks.pop(0)
                expect("block", chunk.block, block)
                expect("first_row", chunk.first_row, len(content) // table.row_bytes)
                expect(f"bytes beyond whole rows of {table.row_bytes}", len(chunk.rows) % table.row_bytes, 0)
                expect_that("rows in every chunk", bool(chunk.rows), chunk.first_row)
                content += chunk.rows
            expect(f"bytes of block {block}", len(content), size)
            expect("digest", chunk.digest, xxhash.xxh3_128_digest(content))
            expect_that(f"version {table.version} or a later one", chunk.version >= table.version, chunk.version)
        expect("chunks after the last block", len(chunks), 0)


@check
def no_blocks_are_no_chunks(memory: Memory) -> None:
    """A request for no blocks ends with OK."""
    with told("no blocks"):
        expect("chunks", list(memory.blocks(blocks_request(memory.table, []))), [])
