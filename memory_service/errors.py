"""Errors of the memory service. Every message names the table, shard or file, and a remedy."""

# ruff: noqa: N818 - the names say what happened, and all of them are MemoryServiceErrors

from __future__ import annotations


class MemoryServiceError(Exception):
    """Base of every error that this package raises on purpose."""


class InvalidRequest(MemoryServiceError, ValueError):
    """A request that cannot be understood: wrong dtype, wrong shape, missing field."""


class RequestTooLarge(MemoryServiceError, ValueError):
    """A request beyond a configured limit, whatever else is under way: split it."""


class ResourceExhausted(MemoryServiceError):
    """A client, or all clients together, have as much under way as the shard allows."""


class Unauthenticated(MemoryServiceError):
    """A call without the bearer token that the shard requires, or with a wrong one."""


class UnknownTable(MemoryServiceError, KeyError):
    """A table that the memory does not hold."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the quoted repr


class RowOutOfRange(MemoryServiceError, IndexError):
    """A row id below zero, beyond the table, or in a block that the shard does not hold."""


class FingerprintMismatch(MemoryServiceError):
    """Two sides disagree about what a table means: geometry, row format or token map."""


class WrongEpoch(MemoryServiceError):
    """A request or an activation under a placement that the shard does not serve."""


class OldVersion(MemoryServiceError):
    """A table of a shard that lacks updates which the client has asked for."""


class WrongStep(MemoryServiceError):
    """A push or commit that does not fit the step or the attempt at training which a shard is at."""


class OutOfMemory(MemoryServiceError, MemoryError):
    """A shard that lacks memory for the blocks that it is given."""


class SnapshotError(MemoryServiceError):
    """A snapshot that is missing, unfinished, damaged or already there."""


class ShardError(MemoryServiceError):
    """Base of errors that concern one shard; `table`, `shard` and `epoch` are set where known."""

    def __init__(
        self, message: str, table: str | None = None, shard: str | None = None, epoch: int | None = None
    ) -> None:
        super().__init__(message)
        self.table = table
        self.shard = shard
        self.epoch = epoch


class ShardUnavailable(ShardError):
    """A shard that refuses connections, broke one off or is stopping."""


class DeadlineExceeded(ShardError):
    """A shard that did not answer in time."""
