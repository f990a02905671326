"""Change which shards hold which blocks while they serve: prepare everywhere, activate everywhere, later retire.

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
    """What a change of placement took."""

    epoch: int
    """The one now in force."""
    moved: int
    """Block replicas that the placement gives to a shard that did not have them under the one before."""
    prepared: Prepared
    """Where the blocks came from, over all shards."""
    seconds: float
    """Until every shard served under the new placement."""


def reshape(
    current: Placement | None,
    target: Placement,
    snapshot_uri: str | Path | None = None,
    prepare_s: float = 3600.0,
    activate_s: float = 5.0,
    cancellation: Cancellation | None = None,
) -> Reshaped:
    """Have the shards of `target` serve it; those of `current`, where it is served, give the blocks that they can.

    Shards of `current` may be dead. What no shard gives is read from the snapshot, which every shard must see itself.
    Shards that `target` does not name any more learn of it, so that they can tell their clients, and answer under the
    old epoch until they are stopped.

    Raises the first shard's error, naming the shard. If that was in preparing, `current` is served as before. If it
    was in activating, some shards serve one and some both: go on to a placement with a higher epoch. A `cancellation`
    ends the preparation with Cancelled; shards go on preparing until they are given another placement.
    """
    started = time.monotonic()
    cancellation = cancellation or Cancellation()

    def prepare(shard: ControlClient) -> Prepared:
        with cancellation.covering(shard):
            return shard.prepare(target, current, snapshot_uri, prepare_s)

    parts = _on_all(target.shards, prepare)
    _on_all(target.shards, lambda shard: shard.activate(target, activate_s))
    _outcomes(_leaving(current, target), lambda shard: shard.activate(target, activate_s))  # they may be gone
    moved = target.moves_from(current) if current else sum(part.copied + part.loaded for part in parts)
    return Reshaped(target.epoch, moved, sum(parts, Prepared()), time.monotonic() - started)


def retire(target: Placement, timeout_s: float = 5.0) -> None:
    """Have the shards of a placement forget what is older, once clients have had time to learn of it.

    Raises the first shard's error, naming the shard.
    """
    _on_all(target.shards, lambda shard: shard.retire(target.epoch, timeout_s))


def _leaving(current: Placement | None, target: Placement) -> list[ShardAddress]:
    staying = {shard.shard for shard in target.shards}
    return [shard for shard in current.shards if shard.shard not in staying] if current else []


def _on_all(shards: Sequence[ShardAddress], call: Callable[[ControlClient], _Result]) -> list[_Result]:
    """Call every shard at once and wait for all; the results in order, or the first shard's error."""
    outcomes = _outcomes(shards, call)
    for shard, outcome in zip(shards, outcomes, strict=True):
        if isinstance(outcome, MemoryServiceError):
            raise _naming(shard, outcome) from outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, MemoryServiceError)]


def _outcomes(
    shards: Sequence[ShardAddress], call: Callable[[ControlClient], _Result]
) -> list[_Result | MemoryServiceError]:
    return each_shard(shards, or_error(call), at_once=len(shards))  # one that prepares may take minutes


def _naming(shard: ShardAddress, error: MemoryServiceError) -> MemoryServiceError:
    named = type(error)(f"{shard.shard} at {shard.address}: {error}")
    if isinstance(named, ShardError):
        named.shard = shard.shard
    return named
