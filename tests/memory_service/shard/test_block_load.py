from __future__ import annotations

import numpy as np

from memory_service.control.client import ControlClient
from memory_service.shard.block_load import BlockLoad


def test_rows_are_counted_by_table_and_block(make_spec):
    load = BlockLoad(every=1)
    first, second = make_spec("a"), make_spec("b")
    load.count(first, np.array([0, 1, 63, 64, 64]))
    load.count(second, np.array([130]))
    load.count(first, np.array([0]))
    assert load.read() == {"a": {0: 4, 1: 2}, "b": {2: 1}}


def test_a_sample_tells_as_much_about_tables_that_are_asked_in_turn(make_spec):
    load = BlockLoad(every=8)
    for _ in range(80):
        for name in ("a", "b"):
            load.count(make_spec(name), np.array([5, 70]))
    assert load.read() == {"a": {0: 80, 1: 80}, "b": {0: 80, 1: 80}}


def test_a_shard_reports_how_often_blocks_are_requested(cluster, spec):
    cluster.start(1)
    server, client = cluster.servers[0], cluster.connect()
    for _ in range(8):
        client.lookup(spec.name, np.array([1, 2, 65])).result()
    with ControlClient(server.address) as control:
        assert control.stats().block_rows == {}
        stats = control.stats(blocks=True)
    assert stats.block_rows == {spec.name: {0: 16, 1: 8}}
    assert stats.incarnation == server.incarnation
