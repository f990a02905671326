"""Change which shards hold which blocks while they serve: prepare all, activate all, later retire the old placement.

Loading, moving, healing, scaling and replicating are all the same change from one placement to another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from memory_service.control.cancellation import Cancellation
from memory_service.control.client import ControlClient
from memory_service.control.each_shard import each_shard, or_error
from memory_service.errors import MemoryServiceError, ShardError
from memory_service.placement.placement import Placement, ShardAddress
from memory_service.protocol.reports import Prepared

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Reshaped:
    """The result of a change of placement."""

    epoch: int
    """Epoch of the placement that is active now."""
    moved: int
    """Block replicas on shards that did not have them under the previous placement."""
    prepared: Prepared
    """Where the blocks came from, counted over all shards."""
    seconds: float
    """Seconds until every shard had activated the new placement."""


def reshape(
    current: Placement | None,
    target: Placement,
    snapshot_uri: str | Path | None = None,
    prepare_s: float = 3600.0,
    activate_s: float = 5.0,
    cancellation: Cancellation | None = None,
) -> Reshaped:
    """Activate a placement on its shards, while they serve the current one.

    Shards that `target` no longer names are told of it too, so that they can tell their clients; they answer under the
    old epoch until they are stopped.

    Args:
        current: the active placement, whose shards blocks are copied from; they may be dead. None for none.
        target: the placement to activate.
        snapshot_uri: where shards read the blocks that no shard has; every shard must be able to read it.
        prepare_s: timeout of a shard's preparation.
        activate_s: timeout of a shard's activation.
        cancellation: ends the preparation early; shards go on preparing until they are given another placement.

    Raises:
        Cancelled: the preparation was cancelled.
        MemoryServiceError: the first shard's error, naming the shard. If a preparation fails, `current` stays
            active. If an activation fails, `target` is active on some shards and `current` on others: go on to a
            placement with a higher epoch.
    """
    started = time.monotonic()
    cancellation = cancellation or Cancellation()

    def prepare(shard: ControlClient) -> Prepared:
        with cancellation.covering(shard):
            return shard.prepare(target, current, snapshot_uri, prepare_s)

    parts = _on_all(target.shards, prepare)
    _on_all(target.shards, lambda shard: shard.activate(target, activate_s))
    _outcomes(_leaving(current, target), lambda shard: shard.activate(target, activate_s))  # whose errors do not matter
    moved = target.moves_from(current) if current else sum(part.copied + part.loaded for part in parts)
    return Reshaped(target.epoch, moved, sum(parts, Prepared()), time.monotonic() - started)


def retire(target: Placement, timeout_s: float = 5.0) -> None:
    """Have the shards of a placement stop serving older ones, once clients have had time to learn of it.

    Raises:
        MemoryServiceError: the first shard's error, naming the shard.
    """
    _on_all(target.shards, lambda shard: shard.retire(target.epoch, timeout_s))


def _leaving(current: Placement | None, target: Placement) -> list[ShardAddress]:
    staying = {shard.shard for shard in target.shards}
    return [shard for shard in current.shards if shard.shard not in staying] if current else []


def _on_all(shards: Sequence[ShardAddress], call: Callable[[ControlClient], _Result]) -> list[_Result]:
    """Call all shards in parallel and wait for all; return the results in order, or raise the first shard's error."""
    outcomes = _outcomes(shards, call)
    for shard, outcome in zip(shards, outcomes, strict=True):
        if isinstance(outcome, MemoryServiceError):
            raise _naming(shard, outcome) from outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, MemoryServiceError)]


def _outcomes(
    shards: Sequence[ShardAddress], call: Callable[[ControlClient], _Result]
) -> list[_Result | MemoryServiceError]:
    return each_shard(shards, or_error(call), at_once=len(shards))  # preparing may take minutes


def _naming(shard: ShardAddress, error: MemoryServiceError) -> MemoryServiceError:
    named = type(error)(f"{shard.shard} at {shard.address}: {error}")
    if isinstance(named, ShardError):
        named.shard = shard.shard
    return named
