"""The memory tier: tables of packed rows, the shards that serve them and the client that asks. No Ray, no torch.

What a client needs is importable from here; the serving side is in `memory_service.shard` and `memory_service.server`,
so that a client runs without the packages of a server.
"""

from __future__ import annotations

from memory_service.client.client import MemoryClient
from memory_service.client.config import ClientConfig
from memory_service.client.local import LocalMemory
from memory_service.errors import (
    DeadlineExceeded,
    FingerprintMismatch,
    InvalidRequest,
    MemoryServiceError,
    OldVersion,
    RequestTooLarge,
    ResourceExhausted,
    RowOutOfRange,
    ShardUnavailable,
    SnapshotError,
    Unauthenticated,
    UnknownTable,
    WrongEpoch,
)
from memory_service.memory import Memory, MemoryStats, Rows, check_fingerprints
from memory_service.placement.assignment import assign_blocks
from memory_service.placement.placement import Placement, ShardAddress
from memory_service.protocol.bearer_token import BearerToken
from memory_service.protocol.security import ClientSecurity, ServerSecurity
from memory_service.snapshots.snapshot import Snapshot
from memory_service.snapshots.writer import extend_snapshot, write_snapshot
from memory_service.tables.rows import RowFormat, pack_rows, unpack_rows
from memory_service.tables.spec import TableSpec

__version__ = "0.1.0"  # of both distributions, see pyproject.toml and engram-memory/pyproject.toml

__all__ = [
    "BearerToken",
    "ClientConfig",
    "ClientSecurity",
    "DeadlineExceeded",
    "FingerprintMismatch",
    "InvalidRequest",
    "LocalMemory",
    "Memory",
    "MemoryClient",
    "MemoryServiceError",
    "MemoryStats",
    "OldVersion",
    "Placement",
    "RequestTooLarge",
    "ResourceExhausted",
    "RowFormat",
    "RowOutOfRange",
    "Rows",
    "ServerSecurity",
    "ShardAddress",
    "ShardUnavailable",
    "Snapshot",
    "SnapshotError",
    "TableSpec",
    "Unauthenticated",
    "UnknownTable",
    "WrongEpoch",
    "assign_blocks",
    "check_fingerprints",
    "extend_snapshot",
    "pack_rows",
    "unpack_rows",
    "write_snapshot",
]
