"""Sources of the blocks that a shard lacks: first the shards that hold them under a placement, then a snapshot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray

from memory_service.control.client import ControlClient
from memory_service.errors import MemoryServiceError, OutOfMemory, ShardUnavailable, SnapshotError
from memory_service.placement.assignment import UNASSIGNED
from memory_service.placement.placement import Placement, ShardAddress
from memory_service.protocol.addresses import Address, parse_address
from memory_service.protocol.messages import HeldTable, ShardInfo
from memory_service.protocol.security import ClientSecurity
from memory_service.shard.block_copy import take_blocks
from memory_service.shard.table import ShardTable
from memory_service.snapshots.snapshot import Snapshot
from memory_service.tables.spec import TableSpec

_DESCRIBE_S = 5.0

Blocks = Iterable[tuple[int, NDArray[np.uint8]]]
"""Block numbers with packed rows, uint8 [n, row_bytes]."""


class Sources:
    """Sources of one shard's blocks for one new placement, to be closed after use. A failed peer is not asked again.

    Args:
        taker: name of the shard that lacks blocks.
        current: placement whose shards blocks are copied from; None if nothing is served yet.
        snapshot_uri: snapshot to read the remaining blocks from, or None.
    """

    def __init__(self, taker: str, current: Placement | None, snapshot_uri: str | Path | None) -> None:
        self._current = current
        self._peers = [_Peer(shard) for shard in current.shards if shard.shard != taker] if current else []
        self._uri = snapshot_uri
        self._snapshot: Snapshot | None = None

    def describe(self, table: str) -> tuple[TableSpec, int]:
        """Spec and version of a table, from the first source that has it.

        Raises:
            ShardUnavailable: no shard has the table, and there is no snapshot.
            SnapshotError: the snapshot cannot be used.
            UnknownTable: the snapshot has no table of that name.
        """
        for peer in self._peers:
            held = peer.table(table)
            if held is not None:
                return held.spec, held.version
        if self._uri is None:
            raise ShardUnavailable(
                f"table {table!r}: no shard knows it{self._reasons()}, and there is no snapshot to read it from: "
                "give the URI of one",
                table,
            )
        entry = self._opened().table(table)
        return entry.spec, entry.version

    def copy(self, table: ShardTable, missing: NDArray[np.integer], tick: Callable[[], None]) -> int:
        """Copy missing blocks from peers, as far as these provide them.

        Args:
            table: the table that receives the blocks.
            missing: numbers of the missing blocks.
            tick: called before each block; an error that it raises ends the copying.

        Returns:
            Number of blocks copied.

        Raises:
            OutOfMemory: there is no room for a block.
        """
        before = len(table.blocks)
        while asked := self._by_peer(table, missing):
            for peer, blocks in asked.items():
                try:
                    table.add(_ticking(peer.blocks(table, blocks), tick))
                except OutOfMemory:
                    raise
                except MemoryServiceError as error:
                    tick()  # superseded: not the peer's fault
                    peer.failure = str(error)
            missing = np.setdiff1d(missing, table.blocks)
        return len(table.blocks) - before

    def load(self, table: ShardTable, missing: NDArray[np.integer], tick: Callable[[], None]) -> int:
        """Read missing blocks from the snapshot.

        Args:
            table: the table that receives the blocks.
            missing: numbers of the missing blocks.
            tick: called before each block; an error that it raises ends the loading.

        Returns:
            Number of blocks read.

        Raises:
            ShardUnavailable: blocks are missing, and there is no snapshot.
            SnapshotError: the snapshot has other rows, or a block is missing or damaged.
            OutOfMemory: there is no room for a block.
        """
        if not len(missing):
            return 0
        name = table.spec.name
        if self._uri is None:
            raise ShardUnavailable(
                f"table {name!r} block {missing[0]}: no shard gives it{self._reasons()}, and there is no snapshot to "
                "read it from: give the URI of one, or start a shard that holds the block",
                name,
            )
        entry = self._opened().table(name)
        if (difference := _difference(table, entry.spec, entry.version)) is not None:
            raise SnapshotError(
                f"snapshot {self._uri}: table {name!r} block {missing[0]} cannot be read from it, {difference}: "
                "use a snapshot of what is served"
            )
        table.add(_ticking(self._opened().read_blocks(name, missing.tolist()), tick))
        return len(missing)

    def close(self) -> None:
        """Close the connections to peers."""
        for peer in self._peers:
            peer.close()

    def _opened(self) -> Snapshot:
        assert self._uri is not None, "checked by the caller"
        if self._snapshot is None:
            self._snapshot = Snapshot.open(self._uri)
        return self._snapshot

    def _by_peer(self, table: ShardTable, missing: NDArray[np.integer]) -> dict[_Peer, list[int]]:
        """Missing blocks by the peer to ask: replicas take turns by block number, blocks without one are left out."""
        asked: dict[_Peer, list[int]] = defaultdict(list)
        if self._current is None or table.spec.name not in self._current.tables:
            return asked
        usable = {peer.shard.shard: peer for peer in self._peers if peer.failure is None}
        shards = self._current.shards
        for block, replicas in zip(missing.tolist(), self._current.tables[table.spec.name].T[missing], strict=True):
            able = [shards[i].shard for i in replicas.tolist() if i != UNASSIGNED and shards[i].shard in usable]
            if able:
                asked[usable[able[block % len(able)]]].append(block)
        return asked

    def _reasons(self) -> str:
        reasons = [
            f"{peer.shard.shard} at {peer.shard.address}: {peer.failure}" for peer in self._peers if peer.failure
        ]
        return f" ({'; '.join(reasons)})" if reasons else ""


class _Peer:
    """A shard to copy from. Its tables are read from it when they are first needed."""

    def __init__(self, shard: ShardAddress) -> None:
        self.shard = shard
        self.failure: str | None = None
        self._info: ShardInfo | None = None
        self._channel: grpc.Channel | None = None

    def table(self, table: str) -> HeldTable | None:
        """A table as the peer holds it; None if the peer does not have it or cannot be reached."""
        try:
            return self._described().tables.get(table)
        except MemoryServiceError as error:
            self.failure = str(error)
            return None

    def blocks(self, table: ShardTable, blocks: list[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield the peer's blocks; MemoryServiceError if it cannot be reached or its table of that name differs."""
        info = self._described()
        held = info.tables.get(table.spec.name)
        if held is None:
            raise MemoryServiceError(f"it has no table {table.spec.name!r}")
        if (difference := _difference(table, held.spec, held.version)) is not None:
            raise MemoryServiceError(f"table {table.spec.name!r}: {difference}")
        if self._channel is None:
            address = Address(parse_address(self.shard.address).host, info.rows_port)
            self._channel = ClientSecurity.from_environment().channel(str(address))
        yield from take_blocks(self._channel, table.spec, table.version, blocks)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._channel is not None:
            self._channel.close()

    def _described(self) -> ShardInfo:
        if self.failure is not None:
            raise MemoryServiceError(self.failure)
        if self._info is None:
            with ControlClient(self.shard.address, self.shard.shard) as control:
                self._info = control.describe(_DESCRIBE_S)
        return self._info


def _difference(table: ShardTable, spec: TableSpec, version: int) -> str | None:
    if spec != table.spec:
        fields = table.spec.differing_fields(spec) or ["block_rows"]
        return f"it differs in {', '.join(fields)}"
    return None if version == table.version else f"it has version {version}, not {table.version}"


def _ticking(blocks: Blocks, tick: Callable[[], None]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    for item in blocks:
        tick()
        yield item
