"""What Prometheus reads, parsed back by its own parser."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from memory_service.metrics.metrics import Kind, Metric, Metrics
from memory_service.metrics.prometheus import PrometheusCollector

HITS = Metric("hits_total", Kind.COUNTER, "Hits so far.", ("table",))
SPENT = Metric("spent_seconds", Kind.HISTOGRAM, "Time spent.", ("stage",))
OPEN = Metric("open", Kind.GAUGE, "Open now.")


def values(family) -> dict:
    return {(sample.name, *sorted(sample.labels.items())): sample.value for sample in family.samples}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def scrape(metrics: Metrics) -> Callable[[], dict]:
    registry = CollectorRegistry()
    registry.register(PrometheusCollector(metrics.collect, {"shard": "s"}))
    return lambda: {f.name: f for f in text_string_to_metric_families(generate_latest(registry).decode())}


def test_values_are_those_of_the_moment(metrics: Metrics, scrape: Callable[[], dict]) -> None:
    metrics.counter(HITS, "a").add(2)
    metrics.gauge(OPEN).add(4)
    families = scrape()
    assert (families["hits"].type, families["hits"].documentation) == ("counter", "Hits so far.")
    assert values(families["hits"]) == {("hits_total", ("shard", "s"), ("table", "a")): 2}
    assert (families["open"].type, values(families["open"])) == ("gauge", {("open", ("shard", "s")): 4})
    metrics.counter(HITS, "a").add(1)
    metrics.counter(HITS, 'b"\n').add(1)
    assert list(values(scrape()["hits"]).values()) == [3, 1]


def test_the_buckets_of_a_histogram_are_cumulative(metrics: Metrics, scrape: Callable[[], dict]) -> None:
    for seconds in (0.0003, 0.0004, 0.003, 100):
        metrics.histogram(SPENT, "send").observe(seconds)
    family = scrape()["spent_seconds"]
    assert family.type == "histogram"
    buckets = {s.labels["le"]: s.value for s in family.samples if s.name == "spent_seconds_bucket"}
    picked = {bound: buckets[bound] for bound in ("0.0002", "0.0005", "0.002", "0.005", "5.0", "+Inf")}
    assert picked == {"0.0002": 0, "0.0005": 2, "0.002": 2, "0.005": 3, "5.0": 3, "+Inf": 4}
    assert values(family)["spent_seconds_count", ("shard", "s"), ("stage", "send")] == 4
    assert values(family)["spent_seconds_sum", ("shard", "s"), ("stage", "send")] == pytest.approx(100.0037)
