"""Samples on their way into Ray's metrics, with a stand-in for Ray's. Real actors export theirs in test_ray.py."""

from __future__ import annotations

import pytest

from cluster.ray_metrics import RayMetrics
from memory_service.metrics.metrics import Kind, Metric, Metrics, Sample

HITS = Metric("hits_total", Kind.COUNTER, "Hits.", ("table",))
SPENT = Metric("spent_seconds", Kind.HISTOGRAM, "Time.", ("stage",))
OPEN = Metric("open", Kind.GAUGE, "Open.")
LABELS = {"shard": "s"}


class Ray:
    """Keeps what Ray would: the value of each name and label set."""

    def __init__(self):
        self.values = {}

    def instrument(self, name, description, tag_keys):
        return _Instrument(self.values, name, tag_keys)


class _Instrument:
    def __init__(self, values, name, tag_keys):
        self._values, self._name, self._tag_keys = values, name, tag_keys

    def _key(self, tags):
        assert set(tags) == set(self._tag_keys)
        return self._name, *sorted(tags.items())

    def inc(self, value, tags):
        assert value > 0
        self._values[self._key(tags)] = self._values.get(self._key(tags), 0) + value

    def set(self, value, tags):
        self._values[self._key(tags)] = value


@pytest.fixture
def exported(monkeypatch):
    fake = Ray()
    for kind in ("Counter", "Gauge"):
        monkeypatch.setattr(f"ray.util.metrics.{kind}", fake.instrument)
    return fake.values


def export_once(collect):
    RayMetrics(collect, LABELS, period_s=60).close()


def test_every_kind_arrives_with_its_labels(exported):
    metrics = Metrics()
    metrics.counter(HITS, "a").add(3)
    metrics.counter(HITS, "b")
    metrics.gauge(OPEN).add(2)
    for seconds in (0.0003, 0.003, 100):
        metrics.histogram(SPENT, "send").observe(seconds)
    export_once(metrics.collect)
    shard = ("shard", "s")
    assert exported.pop(("hits_total", shard, ("table", "a"))) == 3
    assert exported.pop(("open", shard)) == 2
    assert exported.pop(("spent_seconds_count_total", shard, ("stage", "send"))) == 3
    assert exported.pop(("spent_seconds_sum_total", shard, ("stage", "send"))) == pytest.approx(100.0033)
    buckets = {dict(labels)["le"]: value for (_, *labels), value in exported.items()}
    assert buckets["+Inf"] == 3
    assert buckets["5.0"] == buckets["0.005"] == 2
    assert buckets["0.002"] == buckets["0.0005"] == 1
    assert "0.0002" not in buckets  # Ray cannot add zero
    assert not any(name != "spent_seconds_bucket_total" for name, *_ in exported)


def test_a_counter_grows_by_what_is_new_and_survives_a_new_client(exported):
    readings = iter([5, 7, 7, 2])
    exporter = RayMetrics(lambda: [Sample(HITS, ("a",), next(readings))], LABELS, period_s=60)
    for _ in range(3):
        exporter.export()
    exporter.close()
    assert exported == {("hits_total", ("shard", "s"), ("table", "a")): 5 + 2 + 2}


def test_a_failure_is_logged_and_the_next_round_goes_on(exported, caplog):
    readings = iter([[Sample(OPEN, (), 1)]])
    exporter = RayMetrics(lambda: next(readings), LABELS, period_s=60)
    exporter.export()
    exporter.close()
    assert exported == {("open", ("shard", "s")): 1}
    assert "metrics could not be exported to Ray" in caplog.text
