"""Calls to many shards at once."""

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
    """Call every shard, so many at once; the results in order, or the first error."""
    with ThreadPoolExecutor(max(1, min(at_once, len(shards)))) as pool:
        return list(pool.map(ask, shards, repeat(call), repeat(security)))


def ask(shard: ShardAddress, call: Callable[[ControlClient], _Result], security: ClientSecurity | None) -> _Result:
    """Call one shard over a connection of its own."""
    with ControlClient(shard.address, shard.shard, security) as control:
        return call(control)


def describing(timeout_s: float) -> Callable[[ControlClient], ShardInfo | MemoryServiceError]:
    """A call that asks a shard what it is and holds, and returns the error of one that does not say."""
    return or_error(lambda control: control.describe(timeout_s))


def or_error(call: Callable[[ControlClient], _Result]) -> Callable[[ControlClient], _Result | MemoryServiceError]:
    """The same call, except that an error is returned instead of raised, so that all shards can be heard."""

    def outcome(control: ControlClient) -> _Result | MemoryServiceError:
        try:
            return call(control)
        except MemoryServiceError as error:
            return error

    return outcome
