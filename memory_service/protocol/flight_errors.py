"""Errors that end a call of the rows door: Flight has few kinds of its own, so each carries its status along."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from pyarrow import flight

from memory_service.errors import MemoryServiceError, ResourceExhausted, ShardUnavailable
from memory_service.protocol.status import error_of, status_of
from protos import memory_pb2 as pb

_MESSAGE_LENGTH = 1000  # HTTP/2 headers carry it, and gRPC refuses more than 8 KiB of them


def to_flight(error: Exception) -> flight.FlightError:
    """The error that Flight sends instead, without a traceback: it would keep a kilobyte of each for ever."""
    status, _ = status_of(error)
    message = f"{error!s:.{_MESSAGE_LENGTH}}"
    kind = flight.FlightUnavailableError if isinstance(error, ShardUnavailable) else flight.FlightServerError
    return kind(message, extra_info=pb.LookupReply(status=status, message=message).SerializeToString())


def from_flight(error: Exception) -> MemoryServiceError | None:
    """The shard's own error in one that Flight raised; None if the shard sent none."""
    try:
        reply = pb.LookupReply.FromString(getattr(error, "extra_info", None) or b"")
    except DecodeError:
        return None
    return error_of(reply.status, reply.message) if reply.status else None


def refusal_in(cause: Exception | None) -> str | None:
    """The shard's message if a call failed because of a limit, for which no other replica must be asked; else None."""
    found = cause if isinstance(cause, MemoryServiceError) else from_flight(cause) if cause else None
    return str(found) if isinstance(found, ResourceExhausted) else None
