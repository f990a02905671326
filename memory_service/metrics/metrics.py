"""Counters, gauges and histograms that many threads update, and the samples that exporters read.

    metrics = Metrics()
    rows = metrics.counter(CLIENT_ROWS, "engram.1")   # keep it: finding it again costs as much as counting
    rows.add(384)
    metrics.histogram(CLIENT_STAGE_SECONDS, "send").observe(0.0004)
    for sample in metrics.collect(): ...

catalogue.py defines the metrics. Nothing here knows Prometheus or Ray.
"""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

SECONDS_BOUNDS = tuple(float(f"{mantissa}e{exponent}") for exponent in range(-6, 1) for mantissa in (1, 2, 5))
"""Upper bounds of a histogram's buckets in seconds, 1 us to 5 s, three a decade; one more bucket has no bound."""


class Kind(str, Enum):
    """Kinds of metrics, named as in Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, eq=False)
class Metric:
    """A metric, which is itself the key of its values. The name of a counter ends in `_total`."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Distribution:
    """The distribution of durations at one moment: what a histogram holds."""

    bounds: tuple[float, ...]
    """Upper bounds of the buckets, inclusive, ascending."""
    counts: tuple[int, ...]
    """Durations in each bucket; the last bucket, one more than there are bounds, holds those beyond."""
    seconds: float
    """Sum of all durations."""

    @property
    def count(self) -> int:
        """Number of durations observed."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """Estimate the duration below which this share of all durations lies; None if there are none.

        Linear within a bucket, and the last bound beyond it, as histogram_quantile() of Prometheus does.
        """
        rank = share * self.count
        if not self.count:
            return None
        reached = list(itertools.accumulate(self.counts))
        bucket = next(i for i, total in enumerate(reached) if total and total >= rank)
        if bucket == len(self.bounds):
            return self.bounds[-1]
        low = self.bounds[bucket - 1] if bucket else 0.0
        within = self.counts[bucket]
        return low + (self.bounds[bucket] - low) * (rank - reached[bucket] + within) / within


NO_SECONDS = Distribution(SECONDS_BOUNDS, (0,) * (len(SECONDS_BOUNDS) + 1), 0.0)


@dataclass(frozen=True)
class Sample:
    """One value of a metric."""

    metric: Metric
    labels: tuple[str, ...]
    """Values of the metric's labels, in their order."""
    value: float | Distribution


class Value:
    """A number that threads add to: the value of a counter or a gauge."""

    __slots__ = ("_lock", "_number")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number = 0

    def add(self, number: int = 1) -> None:
        """Add a number, which may be negative only for a gauge."""
        with self._lock:
            self._number += number

    @property
    def value(self) -> int:
        """Sum of the numbers added."""
        return self._number


class Histogram:
    """A histogram of durations that threads add to."""

    __slots__ = ("_counts", "_lock", "_seconds")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = [0] * (len(SECONDS_BOUNDS) + 1)
        self._seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Add one duration."""
        bucket = bisect_left(SECONDS_BOUNDS, seconds)
        with self._lock:
            self._counts[bucket] += 1
            self._seconds += seconds

    def add(self, counts: Sequence[int], seconds: float) -> None:
        """Add durations that were counted elsewhere, in the same buckets."""
        with self._lock:
            self._counts = [mine + other for mine, other in zip(self._counts, counts, strict=True)]
            self._seconds += seconds

    @property
    def value(self) -> Distribution:
        """Distribution of the durations added."""
        with self._lock:
            return Distribution(SECONDS_BOUNDS, tuple(self._counts), self._seconds)


class Family:
    """Counters of several metrics that have one label in common and are added to together."""

    def __init__(self, metrics: Metrics, members: Sequence[Metric]) -> None:
        self._metrics = metrics
        self._members = members
        self._counters: dict[str, tuple[Value, ...]] = {}

    def add(self, label: str, *numbers: int) -> None:
        """Add a number to each counter under this value of the label, in the order of the metrics."""
        counters = self._counters.get(label)
        if counters is None:
            counters = self._counters[label] = tuple(self._metrics.counter(metric, label) for metric in self._members)
        for counter, number in zip(counters, numbers, strict=True):
            counter.add(number)


_Instrument = TypeVar("_Instrument", Value, Histogram)


class Metrics:
    """The values of one part of the service, by metric and labels. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._instruments: dict[tuple[Metric, tuple[str, ...]], Value | Histogram] = {}

    def counter(self, metric: Metric, *labels: str) -> Value:
        """Return the counter with these label values, made at zero if there is none."""
        assert metric.kind is Kind.COUNTER, metric
        return self._instrument(Value, metric, labels)

    def family(self, *metrics: Metric) -> Family:
        """Counters of these metrics by the value of their only label, found once for each value."""
        return Family(self, metrics)

    def gauge(self, metric: Metric, *labels: str) -> Value:
        """Return the gauge with these label values, made at zero if there is none."""
        assert metric.kind is Kind.GAUGE, metric
        return self._instrument(Value, metric, labels)

    def histogram(self, metric: Metric, *labels: str) -> Histogram:
        """Return the histogram with these label values, made empty if there is none."""
        assert metric.kind is Kind.HISTOGRAM, metric
        return self._instrument(Histogram, metric, labels)

    def values(self, metric: Metric) -> dict[tuple[str, ...], int]:
        """Return the values of a counter or gauge by label values."""
        return {labels: item.value for labels, item in self._of(metric) if isinstance(item, Value)}

    def total(self, metric: Metric) -> int:
        """Return the sum of a counter over all label values."""
        return sum(self.values(metric).values())

    def distributions(self, metric: Metric) -> dict[tuple[str, ...], Distribution]:
        """Return the distributions of a histogram by label values."""
        return {labels: item.value for labels, item in self._of(metric) if isinstance(item, Histogram)}

    def collect(self) -> Iterator[Sample]:
        """Yield every value as it stands."""
        for (metric, labels), item in self._items():
            yield Sample(metric, labels, item.value)

    def _instrument(self, kind: type[_Instrument], metric: Metric, labels: tuple[str, ...]) -> _Instrument:
        found = self._instruments.get((metric, labels))
        if found is None:
            assert len(labels) == len(metric.labels), f"{metric.name} has the labels {metric.labels}, not {labels}"
            with self._lock:
                found = self._instruments.setdefault((metric, labels), kind())
        assert isinstance(found, kind), metric
        return found

    def _of(self, metric: Metric) -> Iterable[tuple[tuple[str, ...], Value | Histogram]]:
        return [(labels, item) for (known, labels), item in self._items() if known is metric]

    def _items(self) -> list[tuple[tuple[Metric, tuple[str, ...]], Value | Histogram]]:
        with self._lock:
            return list(self._instruments.items())
