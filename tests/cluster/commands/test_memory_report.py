"""What `engram memory describe` shows of shards in this process."""

from __future__ import annotations

import json
import re
import time
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest

from cluster.cli import main
from cluster.commands.memory_report import MemoryReport
from memory_service import ClientConfig, MemoryClient, Placement, RowFormat, ShardAddress, TableSpec, write_snapshot
from memory_service.server.server import ShardServer
from memory_service.shard.shard import Shard, ShardConfig

SPEC = TableSpec("engram.1", 1, (40, 60), 3, 1, (3, 5, 7), 0, "0" * 64, 4, RowFormat.FP32, block_rows=16)


@pytest.fixture
def shards(tmp_path):
    """Two shards of which each holds every block, after one lookup and one refused request."""
    packed = np.arange(SPEC.rows * SPEC.row_bytes, dtype=np.uint8).reshape(SPEC.rows, SPEC.row_bytes)
    write_snapshot(tmp_path / "memory", {SPEC: packed}, version=3)
    with ExitStack() as stack:
        configs = [ShardConfig(node="0123456789abcdef"), ShardConfig()]
        servers = [stack.enter_context(ShardServer(Shard(f"shard-{i}", configs[i]))) for i in range(2)]
        addresses = [ShardAddress(server.shard.name, server.address) for server in servers]
        placement = Placement.build(4, addresses, [SPEC], replicas=2)
        for server in servers:
            server.shard.prepare(placement, snapshot_uri=tmp_path / "memory")
            server.shard.activate(placement)
        client = MemoryClient.connect(servers[0].address, config=ClientConfig(hedge_least_s=60))  # each row once
        client.lookup("engram.1", np.arange(SPEC.rows)).result()
        client.close()
        servers[0].shard.counters.refused(ValueError())
        yield servers


def test_the_json_report_holds_what_every_shard_says(shards, capsys):
    assert main(["memory", "describe", shards[0].address, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["epoch"] == 4
    assert report["tables"][0]["replicas"] == {"least": 2, "most": 2}
    for server, shard in zip(shards, report["shards"], strict=True):
        assert (shard["shard"], shard["address"]) == (server.shard.name, server.address)
        assert (shard["node"], shard["incarnation"]) == (server.shard.config.node, server.incarnation)
        assert (shard["epoch"], shard["versions"]) == (4, {"engram.1": 3})
        assert (shard["blocks"], shard["bytes"]) == ({"engram.1": SPEC.blocks}, SPEC.rows * SPEC.row_bytes)
        assert shard["implementation"] == server.implementation
        assert (shard["streams"], shard["rows_per_s"]) == (0, 0)
        assert shard["started"] == server.shard.stats().started
    served = [shard["served"] for shard in report["shards"]]
    assert sum(shard["rows"] for shard in served) == SPEC.rows
    assert [shard["refused"] for shard in served] == [1, 0]
    assert report["shards"][0]["refused_by"] == {"internal": 1}
    busy = max(report["shards"], key=lambda shard: shard["served"]["rows"])
    assert 0 < busy["latency"]["p50_s"] <= busy["latency"]["p99_s"]
    assert busy["stages"]["gather"]["count"] == busy["served"]["lookups"]


def test_the_columns_of_the_text_report_are_aligned(shards):
    head, _, table_head, table, _, shard_head, *lines = MemoryReport.of(shards[0].address).to_text().splitlines()
    assert head == "epoch 4, 2 shards, 1 table"
    assert table.split() == ["engram.1", "100", "16", "B", "fp32", "7", "16", "2", "3", SPEC.fingerprint[:12]]
    assert table.index(SPEC.fingerprint[:12]) == table_head.index("fingerprint")
    columns = {name: shard_head.index(name) for name in ("address", "node", "by", "blocks", "p50", "refused")}
    for server, line, node, refused in zip(shards, lines, ("0123456789ab ", "- "), ("1", "0"), strict=True):
        assert line[columns["address"] :].startswith(server.address)
        assert line[columns["node"] :].startswith(node)
        assert line[columns["by"] :].startswith(f"{server.implementation} ")
        assert line[columns["blocks"] :].startswith("7 ")
        assert re.match(r"\d+\.\d\d ms|-", line[columns["p50"] :])
        assert line[columns["refused"] :].startswith(f"{refused} ")


def test_a_shard_that_is_gone_is_reported_as_gone(shards):
    shards[1].stop()
    report = MemoryReport.of(shards[0].address)
    gone = report.to_json()["shards"][1]
    assert set(gone) == {"shard", "address"}
    assert report.to_text().splitlines()[-1].split(maxsplit=2) == ["shard-1", gone["address"], "does not answer"]


def test_rows_a_second_are_those_of_the_moment(shards, monkeypatch):
    client = MemoryClient.connect(shards[0].address)
    lookup = SimpleNamespace(
        sleep=lambda _: client.lookup("engram.1", np.arange(50)).result(), monotonic=time.monotonic
    )
    monkeypatch.setattr("cluster.commands.memory_report.time", lookup)
    shards[1].stop()  # so that every row comes from the other
    assert MemoryReport.of(shards[0].address).to_json()["shards"][0]["rows_per_s"] > 0
    client.close()


def test_a_memory_is_described_over_ipv6(tmp_path, capsys):
    try:
        server = ShardServer(Shard("shard-0"), "::1").start()
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 loopback: {error}")
    with server:
        packed = np.zeros((SPEC.rows, SPEC.row_bytes), np.uint8)
        write_snapshot(tmp_path / "memory", {SPEC: packed})
        placement = Placement.build(1, [ShardAddress("shard-0", server.address)], [SPEC])
        server.shard.prepare(placement, snapshot_uri=tmp_path / "memory")
        server.shard.activate(placement)
        assert main(["memory", "describe", server.address]) == 0
        assert f"shard-0  {server.address}" in capsys.readouterr().out
        assert main(["memory", "describe", server.address.replace("[", "").replace("]", "")]) == 2
        assert f"has an IPv6 host without brackets; write {server.address}" in capsys.readouterr().err
