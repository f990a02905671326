"""A memory under load while its shards are killed, frozen, slowed down, moved off lost nodes and changed in number.

Two client processes look rows up without pause and compare every row with the tables. The memory has two replicas, on a
Ray cluster of several raylets on this machine. One fault at a time, at random; the next one once every block has both
replicas and the shards are spread over the nodes again. Prints the latency of lookups before, during and after each
kind of fault, and how long healing took. Fails if a single lookup failed or a single row was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults import implementations
from benchmarks.faults.chaos_load import CLIENTS, Load
from benchmarks.harness.report import Report, format_table
from benchmarks.lookup import table_spec
from cluster.pool.config import PoolConfig
from cluster.pool.named_pools import start_pool, stop_pool, wait_for_pool
from cluster.pool.policies.plan import Shape
from cluster.pool.ray_fleet import MEMORY_ROLE
from cluster.pool.report import PoolDescription
from cluster.ray_runtime import NAMESPACE, fetch
from memory_service import MemoryServiceError, TableSpec, write_snapshot
from memory_service.control.client import ControlClient
from memory_service.placement.placement import UNASSIGNED, Placement
from memory_service.tables.random_tables import random_blocks

POOL = "chaos"
REPLICAS = 2
SHARDS = (3, 5)  # the pool is scaled between these
NODES = 4
QUIET_S = 4.0  # pause before the next fault; latencies within it count as "before" and "after"
HEAL_S = 120.0
OBJECT_STORE_BYTES = 100 << 20


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="of faults, without start and end (default 600)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults and the lookups (default 0)")
    parser.add_argument("--quick", action="store_true", help="each kind of fault once, in about two minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to FILE")
    parser.add_argument(
        "--implementation",
        choices=implementations.CHOICES,
        help="of shards and clients, `mixed` for some of each (default: native where it is built)",
    )
    options = parser.parse_args()
    report = Report("chaos", options.quick)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        snapshot = Path(folder) / "memory"
        write_snapshot(snapshot, {spec: random_blocks(spec, options.seed) for spec in table_specs()})
        memory = stack.enter_context(running(snapshot, options.implementation))
        load = stack.enter_context(
            Load.on(memory.address(), snapshot, Path(folder), options.seed, options.implementation)
        )
        report.results["shards"] = memory.implementations()
        print(f"shards: {', '.join(report.results['shards'])}")
        faults = break_it(memory, random.Random(options.seed), 0.0 if options.quick else options.seconds)
        load.stop()
    summarise(report, faults, load)
    report.publish(options.json)
    if load.failures:
        sys.exit(f"{len(load.failures)} lookups failed or were wrong, the first: {load.failures[0]}")


def table_specs() -> list[TableSpec]:
    """Two tables of V4.1's row format, 35 MB together: every block of them moves in seconds."""
    spec = table_spec(column_rows=16_419)
    return [replace(spec, name=f"engram.{layer}", layer=layer, block_rows=256) for layer in (1, 4)]


@dataclass
class Fault:
    """One fault and its time on the monotonic clock."""

    kind: str
    began: float
    healed: float = field(default=float("nan"))


class Memory:
    """The pool under test, and the faults that are injected into it."""

    def __init__(self, cluster: Any, pool: Any, nodes: list[Any]) -> None:
        self._cluster = cluster
        self._pool = pool
        self._nodes = nodes

    def address(self) -> str:
        """host:port of a shard, once the pool serves."""
        return wait_for_pool(self._pool)

    def implementations(self) -> list[str]:
        """That of each shard's rows."""
        described = self._described()
        assert described is not None, "the pool serves"
        assert described.placement is not None, "the pool serves"
        found = []
        for shard in described.placement.shards:
            with ControlClient(shard.address, shard.shard) as control:
                found.append(control.describe(HEAL_S).implementation)
        return found

    def kill(self, chance: random.Random) -> None:
        """Kill a shard's process."""
        os.kill(self._a_shard(chance), signal.SIGKILL)

    def freeze(self, chance: random.Random) -> None:
        """Stop a shard's process with SIGSTOP, for good."""
        os.kill(self._a_shard(chance), signal.SIGSTOP)

    def slow(self, chance: random.Random) -> None:
        """Let a shard's process run only a fifth of the time for some seconds."""
        process = self._a_shard(chance)
        for _ in range(100):
            os.kill(process, signal.SIGSTOP)
            time.sleep(0.04)
            os.kill(process, signal.SIGCONT)
            time.sleep(0.01)

    def remove_node(self, chance: random.Random) -> None:
        """Remove a node with its shards from the cluster, and add an empty node."""
        node = self._nodes.pop(chance.randrange(len(self._nodes)))
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.append(add_node(self._cluster))

    def kill_pool(self, chance: random.Random) -> None:
        """Kill the process of the pool."""
        os.kill(process_of(self._pool), signal.SIGKILL)

    def scale(self, chance: random.Random) -> None:
        """Change the number of shards."""
        now = fetch(self._pool.describe.remote()).shape.shards
        fetch(self._pool.scale.remote(chance.choice([n for n in range(SHARDS[0], SHARDS[1] + 1) if n != now])))

    def wait_until_whole(self) -> None:
        """Wait until every block has all of its replicas on shards that answer and serve the newest placement."""
        wait_until(self._is_whole, "whole")

    def wait_until_at_rest(self) -> None:
        """Wait until the memory is whole and its shards are spread, so that it survives the loss of any node."""
        wait_until(lambda: self._is_whole() and self._is_at_rest(), "at rest")

    def _is_whole(self) -> bool:
        described = self._described()
        if described is None or described.placement is None:
            return False
        placement = described.placement
        return (
            len(placement.shards) >= described.shape.shards
            and all(map(has_all_replicas, placement.tables.values()))
            and all(serves(placement, shard.shard, shard.address) for shard in placement.shards)
        )

    def _is_at_rest(self) -> bool:
        described = self._described()
        return described is not None and described.at_rest

    def _described(self) -> PoolDescription | None:
        """The pool's status; None while its process restarts."""
        import ray

        try:
            return fetch(self._pool.describe.remote())
        except ray.exceptions.RayActorError:
            return None

    def _a_shard(self, chance: random.Random) -> int:
        return process_of(chance.choice(self._shards()))

    def _shards(self) -> list[Any]:
        import ray

        names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
        return [ray.get_actor(name, NAMESPACE) for name in sorted(names) if name.startswith(f"{POOL}/")]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds; end the run if that takes too long."""
    deadline = time.monotonic() + HEAL_S
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"the memory was not {what} again after {HEAL_S:.0f} s")
        time.sleep(0.1)


def has_all_replicas(assigned: np.ndarray) -> bool:
    """Whether a placement gives each block its full number of replicas."""
    return bool(((assigned != UNASSIGNED).sum(axis=0) >= REPLICAS).all())


def serves(placement: Placement, shard: str, address: str) -> bool:
    """Whether a shard answers, serves this placement and holds its blocks."""
    try:
        with ControlClient(address, shard) as control:
            info = control.describe(1.0)
    except MemoryServiceError:
        return False
    held = {name: set(table.blocks) for name, table in info.tables.items()}
    return (info.placement is not None and info.placement.epoch == placement.epoch) and all(
        held.get(name, set()).issuperset(placement.blocks_of(name, shard).tolist()) for name in placement.tables
    )


def process_of(actor: Any) -> int:
    """Process id of an actor."""
    return fetch(actor.__ray_call__.remote(lambda _: os.getpid()))


def add_node(cluster: Any) -> Any:
    """Add a raylet for memory shards."""
    return cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES, labels=MEMORY_ROLE)


@contextlib.contextmanager
def running(snapshot: Path, implementation: str | None) -> Iterator[Memory]:
    """Start a cluster of several raylets and a pool on it."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": OBJECT_STORE_BYTES})
    try:
        ray.init(
            address=cluster.address,
            namespace=NAMESPACE,
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env=implementations.runtime_env(implementation),
        )
        nodes = [add_node(cluster) for _ in range(NODES)]
        config = PoolConfig(unresponsive_s=3.0, give_up_s=15.0, spread_s=2.0)
        pool = start_pool(str(snapshot), Shape(4, REPLICAS), POOL, detached=True, config=config)
        memory = Memory(cluster, pool, nodes)
        memory.address()
        yield memory
        stop_pool(pool)
    finally:
        ray.shutdown()
        cluster.shutdown()


def break_it(memory: Memory, chance: random.Random, seconds: float) -> list[Fault]:
    """Inject every kind of fault in random order, repeatedly until the time is up."""
    kinds: list[Callable[[random.Random], None]] = [
        memory.kill,
        memory.freeze,
        memory.slow,
        memory.remove_node,
        memory.kill_pool,
        memory.scale,
    ]
    faults: list[Fault] = []
    end = time.monotonic() + seconds
    while not faults or time.monotonic() < end:
        for act in chance.sample(kinds, len(kinds)):
            memory.wait_until_at_rest()
            time.sleep(QUIET_S)
            faults.append(Fault(act.__name__, time.monotonic()))
            act(chance)
            memory.wait_until_whole()
            faults[-1].healed = time.monotonic()
            print(f"{act.__name__}: whole again after {faults[-1].healed - faults[-1].began:.1f} s", flush=True)
    time.sleep(QUIET_S)
    return faults


def summarise(report: Report, faults: list[Fault], load: Load) -> None:
    """Print and record the latencies by kind of fault."""
    by_kind: dict[str, list[Fault]] = defaultdict(list)
    for fault in faults:
        by_kind[fault.kind].append(fault)
    lines = []
    for kind, group in by_kind.items():
        spans = (
            [load.between(f.began - QUIET_S, f.began) for f in group],
            [load.between(f.began, f.healed) for f in group],
        )
        after = [load.between(f.healed, f.healed + QUIET_S) for f in group]
        p99 = [float(np.nanpercentile(np.concatenate(span), 99) * 1e3) for span in (*spans, after)]
        heal = float(np.median([fault.healed - fault.began for fault in group]))
        report.results[kind] = {"faults": len(group), "p99_ms": p99, "heal_s": heal}
        lines.append((kind, len(group), *(f"{value:.1f} ms" for value in p99), f"{heal:.1f} s"))
    report.results |= {"lookups": len(load.times), "failures": load.failures, "clients": load.stats}
    print(format_table(("fault", "times", "p99 before", "during", "after", "whole again in"), lines))
    print(f"{len(load.times):,} lookups by {CLIENTS} clients, {len(load.failures)} failed or wrong")


if __name__ == "__main__":
    main()
