"""What a shard process may be configured to be, and how a mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from memory_service import BearerToken, ServerSecurity
from memory_service.server.config import ServeConfig

PEERS = ["10.0.0.5:7000", "[fd00::6]:7001"]


def config(**fields: object) -> ServeConfig:
    return ServeConfig(**{"snapshot": "/data/memory", **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"snapshot": None}, "join: give the name"),
        ({"join": "shard-1"}, "join: give the name .* or else a `snapshot`"),
        ({"host": "two words"}, "host: 'two words' is no hostname"),
        ({"host": "127.0.0.1:7000"}, "host: '127.0.0.1:7000' has a port"),
        ({"port": -1}, "port: -1 is no port"),
        ({"port": 70000}, "port: 70000 is no port"),
        ({"rows_port": 65536}, "rows_port: 65536 is no port"),
        ({"port": 7000, "rows_port": 7000}, "rows_port: 7000 is `port` too"),
        ({"metrics_port": 70000}, "metrics_port: 70000 is no port"),
        ({"metrics_host": ""}, "metrics_host: '' is no hostname"),
        ({"metrics_secure": True, "metrics_port": 0}, "metrics_secure: the shard has neither a certificate nor"),
        ({"host": "0.0.0.0"}, "advertise: clients cannot call 0.0.0.0; give the name or address"),
        ({"host": "[::]"}, "advertise: clients cannot call ::; give the name or address"),
        ({"advertise": "::"}, "advertise: clients cannot call ::"),
        ({"advertise": "10.0.0.5:7000"}, "advertise: '10.0.0.5:7000' has a port; give the host alone"),
        ({"shard_index": -1}, "shard_index: -1 is not among the 1 shards; count from 0"),
        ({"shard_index": 1}, "shard_index: 1 is not among the 1 shards"),
        ({"peers": PEERS, "port": 7000, "shard_index": 2}, "shard_index: 2 is not among the 2 shards"),
        ({"peers": PEERS, "port": 7000, "shard_index": -1}, "shard_index: -1 is not among the 2 shards"),
        ({"peers": PEERS}, r"port: 0 is not the port of shard 0 in `peers`, 10\.0\.0\.5:7000; give 7000"),
        ({"peers": PEERS, "port": 7000, "shard_index": 1}, r"port: 7000 is .* `peers`, \[fd00::6\]:7001; give 7001"),
        ({"peers": [*PEERS, "[FD00::0:6]:7001"], "port": 7000}, r"peers: \[fd00::6\]:7001 stands there twice"),
        ({"peers": ["a:1", "A:1"], "port": 1}, "peers: a:1 stands there twice"),
        ({"peers": ["::1:7000"], "port": 7000}, r"peers: '::1:7000' has .* write \[::1\]:7000"),
        ({"peers": ["0.0.0.0:7000"], "port": 7000}, r"peers: 0\.0\.0\.0:7000 is no address that others can call"),
        ({"peers": PEERS, "port": 7000, "advertise": "10.0.0.9"}, r"advertise: 10\.0\.0\.9 is not the host of shard 0"),
        ({"peers": PEERS, "port": 7000, "snapshot": None, "join": "x"}, "peers: a shard that joins is told"),
        ({"replicas": 0}, "replicas: 0 is not possible"),
        ({"replicas": 2}, "replicas: 2 is not possible; give 1, or up to the number of `peers`"),
        ({"peers": PEERS, "port": 7000, "replicas": 3}, "replicas: 3 is not possible"),
    ],
)
def test_what_cannot_be_is_refused_by_field_with_its_remedy(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        config(**fields)


@pytest.mark.parametrize(
    ("fields", "advertised"),
    [
        ({}, "127.0.0.1"),
        ({"host": "[::1]"}, "::1"),
        ({"host": "0.0.0.0", "advertise": "Shard-0.example"}, "shard-0.example"),
        ({"host": "10.0.0.5", "advertise": "shard-0.example"}, "shard-0.example"),
        ({"host": "::", "peers": PEERS, "port": 7001, "shard_index": 1}, "fd00::6"),
        ({"host": "::", "peers": PEERS, "port": 7000, "advertise": "10.0.0.5"}, "10.0.0.5"),
        ({"snapshot": None, "join": "shard-1", "host": "::", "advertise": "a"}, "a"),
    ],
)
def test_clients_are_told_a_host_that_they_can_call(fields: dict[str, object], advertised: str) -> None:
    assert config(**fields).advertised == advertised


def test_metrics_of_a_locked_shard_are_exposed_beyond_this_machine_only_by_choice(tmp_path: Path) -> None:
    locked = {"security": ServerSecurity(token=BearerToken("a-token-of-some-length")), "metrics_port": 0}
    assert not config(**locked).exposes_metrics
    assert config(**locked, metrics_host="0.0.0.0").exposes_metrics
    assert not config(**locked, metrics_host="0.0.0.0", metrics_secure=True).exposes_metrics
    assert not config(metrics_host="0.0.0.0", metrics_port=0).exposes_metrics
