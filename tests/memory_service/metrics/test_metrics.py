from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from memory_service.metrics import catalogue
from memory_service.metrics.metrics import NO_SECONDS, SECONDS_BOUNDS, Histogram, Kind, Metric, Metrics

HITS = Metric("hits_total", Kind.COUNTER, "Hits.", ("table",))
ROWS = Metric("rows_total", Kind.COUNTER, "Rows.", ("table",))
SPENT = Metric("spent_seconds", Kind.HISTOGRAM, "Time.", ("stage",))
OPEN = Metric("open", Kind.GAUGE, "Open now.")


def test_samples_of_everything_that_was_counted() -> None:
    metrics = Metrics()
    metrics.counter(HITS, "a").add(2)
    metrics.counter(HITS, "a").add()
    metrics.counter(HITS, "b").add(5)
    metrics.gauge(OPEN).add(3)
    metrics.gauge(OPEN).add(-1)
    metrics.histogram(SPENT, "send").observe(0.003)
    samples = {(sample.metric, sample.labels): sample.value for sample in metrics.collect()}
    spent = samples.pop((SPENT, ("send",)))
    assert samples == {(HITS, ("a",)): 3, (HITS, ("b",)): 5, (OPEN, ()): 2}
    assert (spent.count, spent.seconds) == (1, 0.003)
    assert metrics.values(HITS) == {("a",): 3, ("b",): 5}
    assert metrics.total(HITS) == 8
    assert metrics.distributions(SPENT) == {("send",): spent}


def test_a_family_adds_to_one_counter_of_each_metric_by_label() -> None:
    metrics = Metrics()
    family = metrics.family(HITS, ROWS)
    for label, numbers in (("a", (1, 384)), ("b", (1, 10)), ("a", (1, 16))):
        family.add(label, *numbers)
    assert metrics.values(HITS) == {("a",): 2, ("b",): 1}
    assert metrics.values(ROWS) == {("a",): 400, ("b",): 10}
    with pytest.raises(ValueError, match="shorter"):
        family.add("a", 1)


def test_labels_must_be_those_of_the_metric() -> None:
    with pytest.raises(AssertionError, match="hits_total has the labels"):
        Metrics().counter(HITS)


def test_no_count_is_lost_between_threads() -> None:
    metrics = Metrics()

    def work(_: int) -> None:
        for _ in range(2000):
            metrics.counter(HITS, "a").add()
            metrics.histogram(SPENT, "send").observe(0.001)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert metrics.total(HITS) == 16_000
    assert metrics.distributions(SPENT)["send",].count == 16_000
    assert metrics.distributions(SPENT)["send",].seconds == pytest.approx(16.0)


def test_quantiles_are_right_within_a_bucket() -> None:
    durations = np.random.default_rng(0).lognormal(-7, 1.5, 5000)
    histogram = Histogram()
    for seconds in durations:
        histogram.observe(seconds)
    bounds = np.array([0, *SECONDS_BOUNDS])
    for share in (0.01, 0.5, 0.9, 0.99, 0.999):
        exact = np.quantile(durations, share, method="inverted_cdf")
        bucket = np.searchsorted(bounds, exact)
        assert bounds[bucket - 1] <= histogram.value.quantile(share) <= bounds[bucket]


def test_quantiles_of_none_and_beyond_the_last_bound() -> None:
    assert NO_SECONDS.quantile(0.5) is None
    histogram = Histogram()
    histogram.observe(SECONDS_BOUNDS[3])
    assert histogram.value.quantile(1.0) == SECONDS_BOUNDS[3]
    assert SECONDS_BOUNDS[2] <= histogram.value.quantile(0.0) <= SECONDS_BOUNDS[3]
    histogram.observe(3600)
    assert histogram.value.quantile(1.0) == SECONDS_BOUNDS[-1]


def test_buckets_are_read_as_written() -> None:
    assert SECONDS_BOUNDS[:4] == (1e-6, 2e-6, 5e-6, 1e-5)
    assert list(SECONDS_BOUNDS) == sorted(set(SECONDS_BOUNDS))


def test_every_metric_has_its_own_name_by_the_conventions() -> None:
    listed = [value for value in vars(catalogue).values() if isinstance(value, Metric)]
    listed += catalogue.CLIENT_EVENTS.values()
    assert len({metric.name for metric in listed}) == len(listed)
    for metric in listed:
        assert metric.name.startswith(("engram_memory_shard_", "engram_memory_client_"))
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert metric.name.endswith("_seconds") or metric.kind is not Kind.HISTOGRAM
        assert metric.help.endswith(".")
