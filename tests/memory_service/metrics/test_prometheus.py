"""What Prometheus reads, parsed back by its own parser."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from memory_service.metrics.metrics import Kind, Metric, Metrics
from memory_service.metrics.prometheus import MetricsServer

HITS = Metric("hits_total", Kind.COUNTER, "Hits so far.", ("table",))
SPENT = Metric("spent_seconds", Kind.HISTOGRAM, "Time spent.", ("stage",))
OPEN = Metric("open", Kind.GAUGE, "Open now.")


def scrape(url: str) -> dict:
    with urllib.request.urlopen(url, timeout=10) as reply:
        families = text_string_to_metric_families(reply.read().decode())
        return {family.name: family for family in families}


def values(family) -> dict:
    return {(sample.name, *sorted(sample.labels.items())): sample.value for sample in family.samples}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def url(metrics: Metrics) -> Iterator[str]:
    with MetricsServer(metrics.collect, {"shard": "s"}) as server:
        yield server.url


def test_values_are_those_of_the_moment(metrics: Metrics, url: str) -> None:
    metrics.counter(HITS, "a").add(2)
    metrics.gauge(OPEN).add(4)
    families = scrape(url)
    assert (families["hits"].type, families["hits"].documentation) == ("counter", "Hits so far.")
    assert values(families["hits"]) == {("hits_total", ("shard", "s"), ("table", "a")): 2}
    assert (families["open"].type, values(families["open"])) == ("gauge", {("open", ("shard", "s")): 4})
    metrics.counter(HITS, "a").add(1)
    metrics.counter(HITS, 'b"\n').add(1)
    assert list(values(scrape(url)["hits"]).values()) == [3, 1]


def test_buckets_are_cumulative(metrics: Metrics, url: str) -> None:
    for seconds in (0.0003, 0.0004, 0.003, 100):
        metrics.histogram(SPENT, "send").observe(seconds)
    family = scrape(url)["spent_seconds"]
    assert family.type == "histogram"
    buckets = {s.labels["le"]: s.value for s in family.samples if s.name == "spent_seconds_bucket"}
    picked = {bound: buckets[bound] for bound in ("0.0002", "0.0005", "0.002", "0.005", "5.0", "+Inf")}
    assert picked == {"0.0002": 0, "0.0005": 2, "0.002": 2, "0.005": 3, "5.0": 3, "+Inf": 4}
    assert values(family)["spent_seconds_count", ("shard", "s"), ("stage", "send")] == 4
    assert values(family)["spent_seconds_sum", ("shard", "s"), ("stage", "send")] == pytest.approx(100.0037)


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot serve metrics on 127.0.0.1:{port}: choose a free port"):
            MetricsServer(list, {}, port=port)


def test_a_shard_process_is_scraped(processes) -> None:
    process = processes.start("--metrics-port", "0")
    url = process.stdout.readline().split()[-1]
    processes.addresses = [processes.ready(process)]
    processes.connect().lookup("engram.1", np.arange(10).repeat(3), timeout_s=30).result()
    families = scrape(url)
    name = "engram_memory_shard_rows"
    assert values(families[name]) == {(f"{name}_total", ("shard", "shard-0"), ("table", "engram.1")): 10}
    assert values(families["engram_memory_shard_epoch"]) == {("engram_memory_shard_epoch", ("shard", "shard-0")): 1}
    assert families["engram_memory_shard_lookup_seconds"].type == "histogram"
