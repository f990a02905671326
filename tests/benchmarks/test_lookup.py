"""The rivals of the lookup benchmark return the rows that were asked for, and goals are told from mere ratios."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from benchmarks import lookup
from benchmarks.harness.rounds import Spread, Timing
from benchmarks.harness.servers import free_ports, memory_shards, module_server
from benchmarks.memories import busy_client
from benchmarks.rivals import mooncake_store, redis_mget
from benchmarks.rivals.bare_stream import BareStreamClient
from benchmarks.rivals.plain_grpc import StreamingClient, UnaryClient
from benchmarks.rivals.raw_socket import RawSocketClient
from memory_service import write_snapshot


@pytest.fixture
def packed():
    return np.random.default_rng(0).integers(0, 256, (5000, 20), np.uint8)


def check(packed, client):
    for count in (1, 700, 30):
        rows = np.random.default_rng(count).integers(0, len(packed), count)
        np.testing.assert_array_equal(client.lookup(rows), packed[rows])


def test_a_raw_socket_returns_the_rows_asked_for(packed, tmp_path):
    np.save(tmp_path / "table.npy", packed)
    with (
        module_server("benchmarks.rivals.raw_socket", str(tmp_path / "table.npy")) as server,
        contextlib.closing(RawSocketClient(("127.0.0.1", server.port), 20)) as client,
    ):
        check(packed, client)


def test_both_clients_of_plain_grpc_return_the_rows_asked_for(packed, tmp_path):
    np.save(tmp_path / "table.npy", packed)
    with module_server("benchmarks.rivals.plain_grpc", str(tmp_path / "table.npy")) as server:
        for kind in (UnaryClient, StreamingClient):
            with contextlib.closing(kind(server.address, 20)) as client:
                check(packed, client)


def test_a_bare_stream_returns_the_rows_asked_for(tmp_path):
    spec = lookup.table_spec(column_rows=4000)
    packed = np.random.default_rng(0).integers(0, 256, (spec.rows, spec.row_bytes), np.uint8)
    write_snapshot(tmp_path / "memory", {spec: packed})
    with (
        memory_shards(tmp_path / "memory") as (server,),
        contextlib.closing(BareStreamClient(server.address, spec.name)) as client,
    ):
        check(packed, client)
        rows = np.arange(spec.rows)  # in several replies
        np.testing.assert_array_equal(client.lookup(rows), packed)


@pytest.mark.skipif(redis_mget.missing() is not None, reason=str(redis_mget.missing()))
def test_redis_returns_the_rows_asked_for(packed):
    (port,) = free_ports(1)
    with redis_mget.redis_server(port):
        redis_mget.fill(port, packed)
        with contextlib.closing(redis_mget.RedisClient(port, 20)) as client:
            check(packed, client)


@pytest.mark.skipif(mooncake_store.missing() is not None, reason=str(mooncake_store.missing()))
def test_mooncake_returns_the_rows_asked_for(packed, tmp_path):
    np.save(tmp_path / "table.npy", packed)
    with mooncake_store.mooncake_master() as master:
        arguments = str(tmp_path / "table.npy"), str(master.port)
        with (
            module_server("benchmarks.rivals.mooncake_store", *arguments),
            contextlib.closing(mooncake_store.MooncakeClient(master.port, packed.shape, 100)) as client,
        ):
            check(packed, client)


def test_a_rival_that_returns_other_rows_is_not_timed(packed):
    rival = lookup.Rival(lambda rows: packed[rows + 1])
    with pytest.raises(RuntimeError, match="cheat returns wrong rows"):
        lookup.check({"cheat": rival}, packed, np.arange(10))


def test_goals_are_kept_for_their_size_and_for_rivals_that_took_part():
    timings = {
        lookup.SERVICE: Timing.of([[0.002], [0.004]], client_cpu=1, server_cpu=2),
        lookup.RAW: Timing.of([[0.001], [0.003]], client_cpu=2, server_cpu=2),
    }
    expected = {
        "12,288 rows: raw TCP socket / service, 1 shard (goal 0.8)": Spread(0.625, 0.5, 0.75, 2),
        "12,288 rows: CPU of service, 1 shard / raw TCP socket (at most 1.5)": Spread.of([0.75]),
    }
    assert lookup.goal_ratios(12_288, timings) == expected
    assert lookup.goal_ratios(1_536, timings) == {}


def test_client_processes_ask_at_once(tmp_path):
    spec = lookup.table_spec(column_rows=4000)
    packed = np.random.default_rng(0).integers(0, 256, (spec.rows, spec.row_bytes), np.uint8)
    write_snapshot(tmp_path / "memory", {spec: packed})
    with memory_shards(tmp_path / "memory", 2) as servers:
        pids = [server.pid for server in servers]
        figures = busy_client.run(servers[0].address, spec.name, 50, 0.1, 2, pids)
    assert figures["rows_s"] > 0
    assert figures["client_cpu"] > 0
    assert figures["server_cpu"] > 0
