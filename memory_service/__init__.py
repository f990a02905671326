"""The memory tier: tables of packed rows, the shards that serve them and the client that asks. No Ray, no torch."""

from memory_service.errors import (
    DeadlineExceeded,
    FingerprintMismatch,
    InvalidRequest,
    MemoryServiceError,
    RequestTooLarge,
    RowOutOfRange,
    ShardUnavailable,
    SnapshotError,
    UnknownTable,
    WrongEpoch,
)
from memory_service.local import LocalMemory
from memory_service.memory import Memory, MemoryStats, Rows, check_fingerprints
from memory_service.rows import RowFormat, pack_rows, unpack_rows
from memory_service.snapshot import Snapshot, write_snapshot
from memory_service.spec import TableSpec

__all__ = [
    "DeadlineExceeded",
    "FingerprintMismatch",
    "InvalidRequest",
    "LocalMemory",
    "Memory",
    "MemoryServiceError",
    "MemoryStats",
    "RequestTooLarge",
    "RowFormat",
    "RowOutOfRange",
    "Rows",
    "ShardUnavailable",
    "Snapshot",
    "SnapshotError",
    "TableSpec",
    "UnknownTable",
    "WrongEpoch",
    "check_fingerprints",
    "pack_rows",
    "unpack_rows",
    "write_snapshot",
]
