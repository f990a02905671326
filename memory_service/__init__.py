"""The memory tier: tables of packed rows, the shards that serve them and the client that asks. No Ray, no torch.

What a client needs is importable from here; the serving side is in `memory_service.shard` and `memory_service.server`,
so that a client runs without the packages of a server.
"""

from memory_service.assignment import assign_blocks
from memory_service.client import ClientConfig, MemoryClient
from memory_service.errors import (
    DeadlineExceeded,
    FingerprintMismatch,
    InvalidRequest,
    MemoryServiceError,
    RequestTooLarge,
    ResourceExhausted,
    RowOutOfRange,
    ShardUnavailable,
    SnapshotError,
    Unauthenticated,
    UnknownTable,
    WrongEpoch,
)
from memory_service.local import LocalMemory
from memory_service.memory import Memory, MemoryStats, Rows, check_fingerprints
from memory_service.placement import Placement, ShardAddress
from memory_service.rows import RowFormat, pack_rows, unpack_rows
from memory_service.security import ClientSecurity, ServerSecurity
from memory_service.snapshot import Snapshot
from memory_service.snapshot_writer import extend_snapshot, write_snapshot
from memory_service.spec import TableSpec
from memory_service.token import Token

__all__ = [
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
    "Token",
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
