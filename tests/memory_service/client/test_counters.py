"""What clients and shards count, read back as stats and as samples."""

from __future__ import annotations

import time

import numpy as np
import pytest

from memory_service import TableSpec
from memory_service.client.counters import LookupCounters
from memory_service.metrics.catalogue import (
    CLIENT_EPOCH,
    CLIENT_UNIQUE_ROWS,
    SHARD_BLOCKS,
    SHARD_EPOCH,
    SHARD_HELD_BYTES,
    SHARD_ROWS,
    SHARD_START,
    SHARD_STREAMS,
    SHARD_VERSION,
)
from memory_service.metrics.metrics import Sample
from memory_service.shard.shard import Shard


def by_metric(samples: list[Sample]) -> dict:
    return {(sample.metric, sample.labels): sample.value for sample in samples}


def test_a_client_counts_events_and_stages(spec: TableSpec) -> None:
    counters = LookupCounters()
    counters.count("hedges")
    counters.count("cache_hits", 7)
    counters.shard_rows("shard-1", 4)
    counters.answered(spec, 10, 4, 0.25)
    counters.failed()
    for _ in range(3):
        with counters.stage("dedup"):
            pass
    counters.spent("wait", 0.5)
    stats = counters.snapshot()
    assert (stats.hedges, stats.retries, stats.cache_hits, stats.cache_misses) == (1, 0, 7, 0)
    assert (stats.lookups, stats.failed, stats.rows, stats.unique_rows) == (1, 1, 10, 4)
    assert (stats.bytes, stats.shard_rows) == (4 * spec.row_bytes, {"shard-1": 4})
    assert set(stats.stage_seconds) == {"dedup", "wait"}
    assert stats.stage_seconds["wait"] == stats.latency.seconds * 2 == 0.5


def test_an_event_that_nobody_defined_is_our_bug() -> None:
    with pytest.raises(KeyError, match="surprises"):
        LookupCounters().count("surprises")


def test_a_client_and_its_shard_give_samples(cluster, spec: TableSpec) -> None:
    cluster.start(1)
    client = cluster.connect()
    client.lookup("engram.1", np.arange(50).repeat(2)).result()
    asked = by_metric(client.collect())
    assert asked[CLIENT_EPOCH, ()] == 1
    assert asked[CLIENT_UNIQUE_ROWS, ("engram.1",)] == 50
    served = by_metric(cluster.servers[0].shard.collect())
    assert served[SHARD_ROWS, ("engram.1",)] == 50
    assert served[SHARD_EPOCH, ()] == 1
    assert served[SHARD_STREAMS, ()] == 1
    assert served[SHARD_BLOCKS, ("engram.1",)] == spec.blocks
    assert served[SHARD_HELD_BYTES, ("engram.1",)] >= spec.rows * spec.row_bytes
    assert served[SHARD_VERSION, ("engram.1",)] == 0
    assert served[SHARD_START, ()] == cluster.servers[0].shard.stats().started
    client.close()
    while by_metric(cluster.servers[0].shard.collect())[SHARD_STREAMS, ()]:  # the test's time limit bounds this
        time.sleep(0.01)  # the shard learns of it from the network


def test_a_shard_that_serves_nothing_yet_has_samples_too() -> None:
    served = by_metric(Shard("shard-0").collect())
    assert served[SHARD_EPOCH, ()] == 0
    assert not any(metric is SHARD_BLOCKS for metric, _ in served)
