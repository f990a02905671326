"""Errors on the wire, in one table: error class, status of a lookup reply, gRPC code of the control door."""

from __future__ import annotations

import grpc

from memory_service.errors import (
    DeadlineExceeded,
    FingerprintMismatch,
    InvalidRequest,
    MemoryServiceError,
    OutOfMemory,
    RequestTooLarge,
    ResourceExhausted,
    RowOutOfRange,
    ShardUnavailable,
    SnapshotError,
    Unauthenticated,
    UnknownTable,
    WrongEpoch,
)
from protos import memory_pb2 as pb

STATUS_KEY = "engram-status"
"""Key of the trailing metadata that carries the status through the control door."""

_ERRORS: dict[type[MemoryServiceError], tuple[pb.Status, grpc.StatusCode]] = {
    InvalidRequest: (pb.STATUS_INVALID_REQUEST, grpc.StatusCode.INVALID_ARGUMENT),
    RequestTooLarge: (pb.STATUS_REQUEST_TOO_LARGE, grpc.StatusCode.RESOURCE_EXHAUSTED),
    UnknownTable: (pb.STATUS_UNKNOWN_TABLE, grpc.StatusCode.NOT_FOUND),
    RowOutOfRange: (pb.STATUS_ROW_OUT_OF_RANGE, grpc.StatusCode.OUT_OF_RANGE),
    FingerprintMismatch: (pb.STATUS_FINGERPRINT_MISMATCH, grpc.StatusCode.FAILED_PRECONDITION),
    WrongEpoch: (pb.STATUS_WRONG_EPOCH, grpc.StatusCode.FAILED_PRECONDITION),
    SnapshotError: (pb.STATUS_SNAPSHOT_ERROR, grpc.StatusCode.FAILED_PRECONDITION),
    OutOfMemory: (pb.STATUS_OUT_OF_MEMORY, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ShardUnavailable: (pb.STATUS_UNAVAILABLE, grpc.StatusCode.UNAVAILABLE),
    DeadlineExceeded: (pb.STATUS_DEADLINE_EXCEEDED, grpc.StatusCode.DEADLINE_EXCEEDED),
    ResourceExhausted: (pb.STATUS_RESOURCE_EXHAUSTED, grpc.StatusCode.RESOURCE_EXHAUSTED),
    Unauthenticated: (pb.STATUS_UNAUTHENTICATED, grpc.StatusCode.UNAUTHENTICATED),
}
_CLASSES: dict[int, type[MemoryServiceError]] = {status: error for error, (status, _) in _ERRORS.items()}


def status_of(error: Exception) -> tuple[pb.Status, grpc.StatusCode]:
    """Return the status and gRPC code of an error; INTERNAL for an error that is not a MemoryServiceError."""
    for kind, named in _ERRORS.items():
        if isinstance(error, kind):
            return named
    return pb.STATUS_INTERNAL, grpc.StatusCode.INTERNAL


def reason_of(error: Exception) -> str:
    """Return the status of an error in lower case, such as "row_out_of_range"."""
    status, _ = status_of(error)
    return pb.Status.Name(status).removeprefix("STATUS_").lower()


def error_of(status: int, message: str) -> MemoryServiceError:
    """Return a new error of the class that a status stands for."""
    return _CLASSES.get(status, MemoryServiceError)(message)
