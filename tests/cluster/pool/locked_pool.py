"""A pool on a Ray of its own, whose doors are locked as the environment of this process says: `test_ray_locks` runs it.

A process of its own, because shards take their locks from the environment of their node.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import closing

import numpy as np

from cluster.pool.config import PoolConfig
from cluster.pool.named_pools import start_pool, stop_pool, wait_for_pool
from cluster.pool.policies.plan import Shape
from cluster.ray_runtime import fetch, ray_session
from memory_service import ClientSecurity, LocalMemory, MemoryClient, MemoryServiceError
from tests.cluster.on_ray import shard_processes, wait_until

QUICK = PoolConfig(check_s=0.2, grace_s=0.5)


def main(snapshot: str) -> None:
    """Look every row up, before and after a shard had to copy its blocks anew, and once without a key."""
    with ray_session():
        pool = start_pool(snapshot, Shape(2, 2), "locked", config=QUICK)
        address = wait_for_pool(pool)
        look_up_all(address, snapshot)
        epoch = fetch(pool.describe.remote()).placement.epoch
        os.kill(max(shard_processes("locked").values()), signal.SIGKILL)
        wait_until(lambda: (described := fetch(pool.describe.remote())).at_rest and described.placement.epoch > epoch)
        look_up_all(wait_for_pool(pool), snapshot)
        try:
            MemoryClient.connect(address, security=ClientSecurity()).close()
        except MemoryServiceError as error:
            print(f"without a key: {error}")
        stop_pool(pool)


def look_up_all(address: str, snapshot: str) -> None:
    """Compare every row with the snapshot's."""
    reference = LocalMemory.load(snapshot)
    with closing(MemoryClient.connect(address)) as client:
        for table, spec in reference.specs.items():
            ids = np.arange(spec.rows)
            rows, wanted = client.lookup(table, ids).result(), reference.lookup(table, ids).result()
            assert (rows.unique[rows.inverse] == wanted.unique[wanted.inverse]).all()
    print("every row")


if __name__ == "__main__":
    main(sys.argv[1])
