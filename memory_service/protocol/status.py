"""Errors on the wire, in one table: error class, status of a lookup reply, gRPC code of a call."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc

from memory_service.errors import (
    DeadlineExceeded,
    FingerprintMismatch,
    InvalidRequest,
    MemoryServiceError,
    OldVersion,
    OutOfMemory,
    RequestTooLarge,
    ResourceExhausted,
    RowOutOfRange,
    ShardUnavailable,
    SnapshotError,
    Unauthenticated,
    UnknownTable,
    WrongEpoch,
    WrongStep,
)
from protos import memory_pb2 as pb

STATUS_KEY = "engram-status"
"""Key of the trailing metadata that carries the status of a call."""

_MESSAGE_LENGTH = 1000  # HTTP/2 headers carry it, and gRPC refuses more than 8 KiB of them

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
    OldVersion: (pb.STATUS_OLD_VERSION, grpc.StatusCode.FAILED_PRECONDITION),
    WrongStep: (pb.STATUS_WRONG_STEP, grpc.StatusCode.FAILED_PRECONDITION),
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


def refuse(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    """End a call of a shard in an error, as `error_in` reads it."""
    status, code = status_of(error)
    context.set_trailing_metadata(((STATUS_KEY, str(int(status))),))
    context.abort(code, f"{error!s:.{_MESSAGE_LENGTH}}")
    raise AssertionError("abort raises")


def error_in(call: Any) -> MemoryServiceError | None:
    """The error in which a shard ended a call; None if it gave none, as where the connection broke."""
    status = dict(call.trailing_metadata() or ()).get(STATUS_KEY)
    return None if status is None else error_of(int(status), call.details())
