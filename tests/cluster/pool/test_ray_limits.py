"""Limits of a pool's shards on Ray."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from cluster.pool.named_pools import serve_pool, stop_pool
from cluster.pool.policies.plan import Shape
from cluster.pool.pool import PoolConfig
from memory_service import MemoryClient, ResourceExhausted
from memory_service.server.limits import DoorLimits

pytestmark = pytest.mark.slow


def test_shards_of_a_pool_have_the_limits_of_its_configuration(ray, tiny_model):
    config = PoolConfig(limits=DoorLimits(streams_per_client=1))
    pool, address = serve_pool(str(tiny_model / "memory"), Shape(1), "limited", config=config)
    try:
        with closing(MemoryClient.connect(address)) as first, closing(MemoryClient.connect(address)) as second:
            table = next(iter(first.specs))
            first.lookup(table, np.arange(9)).result()
            with pytest.raises(ResourceExhausted, match=r"the limit is 1 \(streams_per_client\)"):
                second.lookup(table, np.arange(9)).result()
    finally:
        stop_pool(pool)
