"""Samples as metric families of Prometheus, taken at each scrape; nothing is kept in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from memory_service.metrics.metrics import Distribution, Kind, Metric, Sample

Collect = Callable[[], Iterable[Sample]]
Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
_FAMILIES = {
    Kind.COUNTER: CounterMetricFamily,
    Kind.GAUGE: GaugeMetricFamily,
    Kind.HISTOGRAM: HistogramMetricFamily,
}


class PrometheusCollector(Collector):
    """Yields samples as metric families, with `labels` added to each sample."""

    def __init__(self, collect: Collect, labels: Mapping[str, str]) -> None:
        self._collect = collect
        self._labels = labels

    def collect(self) -> Iterator[Family]:
        """Yield every metric as it stands."""
        families: dict[Metric, Family] = {}
        for sample in self._collect():
            family = families.setdefault(sample.metric, self._family(sample.metric))
            _add(family, [*self._labels.values(), *sample.labels], sample.value)
        yield from families.values()

    def describe(self) -> list[Family]:
        """Return nothing: with this method, a registry need not collect once to learn the names."""
        return []

    def _family(self, metric: Metric) -> Family:
        return _FAMILIES[metric.kind](metric.name, metric.help, labels=[*self._labels, *metric.labels])


def _add(family: Family, labels: list[str], value: float | Distribution) -> None:
    if isinstance(family, HistogramMetricFamily):
        assert isinstance(value, Distribution), f"{family.name} is a histogram"
        bounds = [*map(floatToGoString, value.bounds), "+Inf"]
        reached = accumulate(value.counts)
        family.add_metric(labels, list(zip(bounds, reached, strict=True)), value.seconds)
    else:
        assert not isinstance(value, Distribution), f"{family.name} is a number"
        family.add_metric(labels, value)
