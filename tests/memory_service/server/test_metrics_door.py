"""The metrics door: who can read it, and what silent connections cost."""

from __future__ import annotations

import re
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families

from memory_service import BearerToken, ServerSecurity
from memory_service.metrics.metrics import Kind, Metric, Metrics
from memory_service.server import metrics_door
from memory_service.server.metrics_door import MetricsDoor

HITS = Metric("hits_total", Kind.COUNTER, "Hits so far.")
TOKEN = BearerToken("a-token-of-some-length")


def scrape(url: str, context: ssl.SSLContext | None = None, **headers: str) -> dict:
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=30, context=context) as reply:
        return {family.name: family for family in text_string_to_metric_families(reply.read().decode())}


def values(family) -> dict:
    return {(sample.name, *sorted(sample.labels.items())): sample.value for sample in family.samples}


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    metrics.counter(HITS).add(2)
    return metrics


@pytest.fixture
def door(metrics: Metrics) -> Iterator[MetricsDoor]:
    with MetricsDoor(metrics.collect, {"shard": "s"}) as door:
        yield door


def silent_connections(stack: ExitStack, door: MetricsDoor, count: int) -> list[socket.socket]:
    address = ("127.0.0.1", door._server.server_port)
    return [stack.enter_context(socket.create_connection(address, timeout=30)) for _ in range(count)]


def threads_of_connections() -> int:
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def test_a_scrape_returns_the_values_of_the_moment(metrics: Metrics, door: MetricsDoor) -> None:
    assert values(scrape(door.url)["hits"]) == {("hits_total", ("shard", "s")): 2}
    metrics.counter(HITS).add(1)
    assert values(scrape(door.url)["hits"]) == {("hits_total", ("shard", "s")): 3}


def test_silent_connections_are_bounded_and_others_are_served(door: MetricsDoor, stack: ExitStack) -> None:
    before = threads_of_connections()
    silent = silent_connections(stack, door, 120)
    silent[-1].sendall(b"GET /met")  # and one that is slow
    for _ in range(3):
        assert "hits" in scrape(door.url)
    assert threads_of_connections() - before <= metrics_door._CONNECTIONS
    assert silent[0].recv(1) == b""  # the oldest made room


def test_a_connection_that_stays_silent_is_closed(
    metrics: Metrics, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_door._Handler, "timeout", 0.1)
    door = stack.enter_context(MetricsDoor(metrics.collect, {}))
    [silent] = silent_connections(stack, door, 1)
    assert silent.recv(1) == b""


def test_closing_ends_connections_and_frees_the_port(metrics: Metrics, stack: ExitStack) -> None:
    with MetricsDoor(metrics.collect, {}) as door:
        port = door._server.server_port
        silent = silent_connections(stack, door, 2)
        scrape(door.url)  # so the two before it have been accepted
    assert [connection.recv(1) for connection in silent] == [b"", b""]
    with MetricsDoor(metrics.collect, {}, port=port) as door:
        scrape(door.url)


def test_a_taken_metrics_port_is_named_with_its_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = f"cannot serve metrics on 127.0.0.1:{port}: choose an address of this machine and a free port"
        with pytest.raises(OSError, match=message):
            MetricsDoor(list, {}, port=port)


def test_a_host_that_is_no_address_of_this_machine_is_named() -> None:
    with pytest.raises(OSError, match=r"cannot serve metrics on 192\.0\.2\.1:0: choose an address of this machine"):
        MetricsDoor(list, {}, "192.0.2.1")


@pytest.mark.parametrize(
    ("host", "shown", "reach"),
    [("127.0.0.1", "127.0.0.1", " for this machine only"), ("0.0.0.0", "shard-0.example", "")],
)
def test_the_url_has_a_host_that_can_be_called(metrics: Metrics, host: str, shown: str, reach: str) -> None:
    with MetricsDoor(metrics.collect, {}, host, advertise="shard-0.example") as door:
        assert re.fullmatch(rf"http://{re.escape(shown)}:\d+/metrics", door.url)
        assert door.reach == reach


def test_metrics_are_served_over_ipv6(metrics: Metrics, ipv6: str) -> None:
    with MetricsDoor(metrics.collect, {}, "[::1]") as door:
        assert door.url.startswith("http://[::1]:")
        assert "hits" in scrape(door.url)


def test_a_locked_door_asks_for_the_token(metrics: Metrics) -> None:
    with MetricsDoor(metrics.collect, {}, security=ServerSecurity(token=TOKEN)) as door:
        for headers in ({}, {"Authorization": "Bearer something-else-altogether"}):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                scrape(door.url, **headers)
        assert "hits" in scrape(door.url, Authorization=TOKEN.header)


def test_a_locked_door_asks_for_tls_and_a_certificate(metrics: Metrics, tmp_path: Path, stack: ExitStack) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    security = ServerSecurity(tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem")
    door = stack.enter_context(MetricsDoor(metrics.collect, {}, security=security))
    assert door.url.startswith("https://127.0.0.1:")
    silent_connections(stack, door, 40)  # that never shake hands
    known, stranger = ssl.create_default_context(), ssl.create_default_context()
    authority.issue_cert("prometheus").configure_cert(known)
    for context in (known, stranger):
        authority.configure_trust(context)
    with pytest.raises((ssl.SSLError, urllib.error.URLError, OSError)):
        scrape(door.url, stranger)
    with pytest.raises((urllib.error.URLError, OSError)):
        scrape(door.url.replace("https", "http"))
    assert "hits" in scrape(door.url, known)


def test_a_shard_process_is_scraped(processes) -> None:
    process = processes.start("--metrics-port", "0")
    line = process.stdout.readline()
    assert "shard-0 metrics for this machine only on http://127.0.0.1:" in line
    processes.addresses = [processes.ready(process)]
    processes.connect().lookup("engram.1", np.arange(10).repeat(3), timeout_s=30).result()
    families = scrape(line.split()[-1])
    name = "engram_memory_shard_rows"
    assert values(families[name]) == {(f"{name}_total", ("shard", "shard-0"), ("table", "engram.1")): 10}
    assert values(families["engram_memory_shard_epoch"]) == {("engram_memory_shard_epoch", ("shard", "shard-0")): 1}
    assert families["engram_memory_shard_lookup_seconds"].type == "histogram"
