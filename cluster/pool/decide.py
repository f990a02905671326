"""What a memory pool should do next: one pure step of reconciliation, without Ray, clocks and threads.

Every round starts from what is observed, not from what was meant to happen, so the next round makes good for an action
that failed, a shard that died and a pool that was restarted. At most one reshape and one change of shape are under way
at any time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from cluster.pool.config import PoolConfig
from cluster.pool.policies.autoscale import Reading
from cluster.pool.policies.node_spread import next_move
from cluster.pool.policies.plan import Goal, Layout, Shape, Whereabouts
from cluster.pool.report import ScaleReport
from cluster.pool.state import (
    AbandonReshape,
    Action,
    Change,
    Conclude,
    Done,
    Observation,
    PoolState,
    Reshape,
    RestartShard,
    Retire,
    SaveGoal,
    StartShard,
    StopShard,
)
from memory_service.control.cancellation import Cancelled
from memory_service.errors import ShardUnavailable, WrongEpoch
from memory_service.placement.placement import Placement

_PASSING = (ShardUnavailable, WrongEpoch, Cancelled)  # shards come and go: the next attempt may succeed
_LONGEST_PAUSE_S = 15.0

Step = tuple[PoolState, list[Action]]


def decide(state: PoolState, seen: Observation, config: PoolConfig) -> Step:
    """Return the state after a round of observation, and the actions that it calls for."""
    state = replace(state, requests=(*state.requests, *seen.requests))
    for done in seen.done:
        state = _ended(state, done, seen, config)
    state, refused = _begin(state, seen, config)
    state, concluded = _conclude(state, seen, config)
    state, saved = _save(state, seen)
    state, work = _work(state, seen, config)
    restarts = [RestartShard(shard) for shard in seen.silent(config.unresponsive_s)]
    return state, [*refused, *concluded, *saved, *restarts, *_starts(state, seen), *work, *_stops(state, seen)]


def recover(
    state: PoolState, goal: Goal | None, serving: Mapping[Whereabouts, Placement | None], now: float
) -> PoolState:
    """Return the state of a pool that goes on where its earlier process ended.

    Args:
        state: the state of a new pool.
        goal: what the shards remember; None if they remember nothing.
        serving: the shards that were found, and the placement that each has activated.
        now: seconds of the clock of the observations to come.
    """
    plan = state.plan if goal is None else replace(state.plan, wanted=goal.shape)
    placements = [placement for placement in serving.values() if placement is not None]
    if placements:
        newest = max(placements, key=lambda placement: placement.epoch)
        addresses = {(shard.shard, shard.address) for shard in newest.shards}
        plan = plan.adopting(newest, [where for where in serving if (where.shard, where.address) in addresses])
    change = Change(goal.fallback, plan.placement, now) if goal and goal.fallback else None
    return replace(state, plan=plan, change=change)


def is_settled(state: PoolState, seen: Observation, config: PoolConfig) -> bool:
    """Whether the wanted shape is served, older placements are retired, and no shard is left over."""
    idle = state.plan.target is None and not state.retiring and state.retire_at is None
    return idle and state.plan.is_reached(seen.missing(config.give_up_s)) and not _surplus(state, seen)


def is_at_rest(state: PoolState, seen: Observation, config: PoolConfig) -> bool:
    """Whether nothing is under way or called for, and every shard serves on the node where it should be."""
    return _is_quiet(state, seen, config) and next_move(seen.nodes, seen.nodes_with_room) is None


def problem(state: PoolState, seen: Observation, config: PoolConfig) -> Exception | None:
    """Return the error that keeps the pool from its shape, if there is one that waiting will not mend."""
    for failure in (*seen.failures, state.failure):
        if failure is not None and not isinstance(failure, _PASSING):
            return failure
    if late := state.plan.unplaced(seen.missing(config.start_s)):
        return ShardUnavailable(
            f"{late[0]} did not start within {config.start_s:g} s: does a node of the cluster have room for "
            "it? Add memory nodes, or give fewer `shards`",
            shard=late[0],
        )
    return None


def _ended(state: PoolState, done: Done, seen: Observation, config: PoolConfig) -> PoolState:
    """Take account of an action that has ended."""
    match done.action:
        case Retire():
            # A shard that could not be reached has died, and its old placements with it.
            return replace(state, retiring=False, retire_at=None)
        case Reshape():
            return _reshaped(state, done.error, seen.now, config)
        case _:
            return state


def _reshaped(state: PoolState, error: Exception | None, now: float, config: PoolConfig) -> PoolState:
    if error is None:
        return replace(
            state, plan=state.plan.activated(), retire_at=now + config.grace_s, failure=None, pause_s=0.0, retry_at=now
        )
    pause_s = min(2 * max(state.pause_s, config.check_s), _LONGEST_PAUSE_S)
    return replace(state, plan=state.plan.failed(), failure=error, pause_s=pause_s, retry_at=now + pause_s)


def _begin(state: PoolState, seen: Observation, config: PoolConfig) -> Step:
    """Begin the next change of shape, if its turn has come: requests before what the pool itself decides."""
    if state.change is not None:
        return state, []
    if state.requests:
        return _take_request(state, seen, config)
    if _is_quiet(state, seen, config):
        state = _spread(state, seen)
    if state.change is None and is_settled(state, seen, config):
        state = _tune(state, seen)
    return state, []


def _take_request(state: PoolState, seen: Observation, config: PoolConfig) -> Step:
    """Begin the change that was requested first; a stuck pool takes it at once, as it may be the cure."""
    request, waiting = state.requests[0], state.requests[1:]
    after = replace(state, requests=waiting)
    try:
        changed = _want(after, request.applied_to(state.plan.wanted), Change.of(state, seen.now, request.number))
    except ValueError as error:
        return after, [Conclude(request.number, error)]
    may_begin = is_settled(state, seen, config) or problem(state, seen, config) is not None
    return (changed if may_begin else state), []


def _spread(state: PoolState, seen: Observation) -> PoolState:
    """Move a shard to another node, if one should move: a successor there takes over before the shard leaves."""
    spreader, move = state.spreader.decide(seen.now, seen.nodes, seen.nodes_with_room)
    state = replace(state, spreader=spreader)
    if move is None:
        return state
    shape, successor = state.plan.wanted.succeeded(move.shard)
    return _want(state, shape, Change.of(state, seen.now, nodes={successor: move.node}))


def _tune(state: PoolState, seen: Observation) -> PoolState:
    """Let the load decide the number of shards and the replicas of hot blocks."""
    if state.tuner is None or state.plan.placement is None or not seen.counts_blocks:
        return state
    tuner, shape = state.tuner.decide(Reading(seen.now, seen.up), state.plan.wanted, state.plan.placement)
    state = replace(state, tuner=tuner)
    return state if shape == state.plan.wanted else _want(state, shape, Change.of(state, seen.now))


def _want(state: PoolState, shape: Shape, change: Change | None) -> PoolState:
    """Have another shape, at once, whatever failed before."""
    plan = replace(state.plan, wanted=shape)
    return replace(state, plan=plan, change=change, failure=None, pause_s=0.0, retry_at=-math.inf)


def _conclude(state: PoolState, seen: Observation, config: PoolConfig) -> Step:
    """End the change of shape if it is done, or go back to the shape before it if that cannot be."""
    change = state.change
    if change is None:
        return state, []
    if is_settled(state, seen, config):
        assert state.plan.placement is not None, "a settled pool serves"
        report = ScaleReport.of(change.placement, state.plan.placement, seen.now - change.began)
        return replace(state, change=None), [Conclude(change.request, report)]
    if error := problem(state, seen, config):
        return _want(state, change.fallback, None), [Conclude(change.request, error)]
    return state, []


def _save(state: PoolState, seen: Observation) -> Step:
    """Have every shard that answers remember the goal."""
    saved = state.goal, frozenset(seen.up)
    if saved == state.saved:
        return state, []
    return replace(state, saved=saved), [SaveGoal(state.goal)]


def _work(state: PoolState, seen: Observation, config: PoolConfig) -> Step:
    """Take the next step towards the wanted shape: one at a time, as each may take long."""
    if state.plan.target is not None:
        return state, [AbandonReshape()] if _is_doomed(state.plan.target, seen, config) else []
    if state.retiring or seen.now < state.retry_at:
        return state, []
    plan = state.plan.advanced(seen.up, seen.missing(config.give_up_s))
    if plan.target is not None:
        reshape = Reshape(plan.placement, plan.target.placement, retire=state.retire_at is not None)
        return replace(state, plan=plan, retire_at=None), [reshape]
    if state.retire_at is not None and seen.now >= state.retire_at:
        assert plan.placement is not None, "only a pool that serves has placements to retire"
        return replace(state, retiring=True), [Retire(plan.placement)]
    return state, []


def _is_doomed(target: Layout, seen: Observation, config: PoolConfig) -> bool:
    """Whether a process of the layout has ended or stays away, so that the layout can never be served."""
    present = {where.shard: where for where in seen.up}
    ended = any(present.get(where.shard, where) != where for where in target.processes)
    return ended or not target.names.isdisjoint(seen.missing(config.give_up_s))


def _starts(state: PoolState, seen: Observation) -> list[Action]:
    nodes = state.change.nodes if state.change else {}
    absent = [shard for shard in state.plan.wanted.names if shard not in seen.running]
    return [StartShard(shard, nodes.get(shard)) for shard in absent]


def _stops(state: PoolState, seen: Observation) -> list[Action]:
    """Stop the shards that are left over, once clients have had time to learn that they are."""
    if state.plan.target is not None or state.retiring or state.retire_at is not None:
        return []
    return [StopShard(shard) for shard in _surplus(state, seen) if shard not in seen.stopping]


def _surplus(state: PoolState, seen: Observation) -> list[str]:
    return sorted(seen.running - set(state.plan.names))


def _is_quiet(state: PoolState, seen: Observation, config: PoolConfig) -> bool:
    """Whether no change is under way or requested, and every shard serves."""
    idle = state.change is None and not state.requests and is_settled(state, seen, config)
    return idle and state.plan.is_whole(seen.up)
