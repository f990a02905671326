"""Calls to many shards in parallel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import TypeVar

from memory_service.control.client import ControlClient
from memory_service.errors import MemoryServiceError
from memory_service.placement.placement import ShardAddress
from memory_service.protocol.messages import ShardInfo
from memory_service.protocol.security import ClientSecurity

_THREADS = 16

_Result = TypeVar("_Result")


def each_shard(
    shards: Sequence[ShardAddress],
    call: Callable[[ControlClient], _Result],
    security: ClientSecurity | None = None,
    at_once: int = _THREADS,
) -> list[_Result]:
    """Call every shard, `at_once` of them in parallel.

    Returns:
        The results, in the order of the shards.

    Raises:
        MemoryServiceError: the error of the first shard in that order whose call fails.
    """
    with ThreadPoolExecutor(max(1, min(at_once, len(shards)))) as pool:
        return list(pool.map(ask, shards, repeat(call), repeat(security)))


def ask(shard: ShardAddress, call: Callable[[ControlClient], _Result], security: ClientSecurity | None) -> _Result:
    """Call one shard over a connection of its own."""
    with ControlClient(shard.address, shard.shard, security) as control:
        return call(control)


def describing(timeout_s: float) -> Callable[[ControlClient], ShardInfo | MemoryServiceError]:
    """Return a call that describes a shard within `timeout_s`, or returns the error if that fails."""
    return or_error(lambda control: control.describe(timeout_s))


def or_error(call: Callable[[ControlClient], _Result]) -> Callable[[ControlClient], _Result | MemoryServiceError]:
    """Return the same call, except that it returns errors instead of raising them: one does not hide the others."""

    def outcome(control: ControlClient) -> _Result | MemoryServiceError:
        try:
            return call(control)
        except MemoryServiceError as error:
            return error

    return outcome
