"""Metrics over HTTP for Prometheus: samples are taken when it asks, and nothing is kept in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from types import TracebackType

from prometheus_client import CollectorRegistry, start_http_server
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


class MetricsServer:
    """Serves `/metrics` in a background thread until closed. OSError if it cannot listen there."""

    def __init__(self, collect: Collect, labels: Mapping[str, str], host: str = "127.0.0.1", port: int = 0) -> None:
        registry = CollectorRegistry()  # its own: the default one would add the metrics of this Python process
        registry.register(PrometheusCollector(collect, labels))
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise OSError(
                f"cannot serve metrics on {host}:{port}: choose a free port, or 0 for any ({error})"
            ) from error
        self.url = f"http://{host}:{self._server.server_port}/metrics"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class PrometheusCollector(Collector):
    """Samples as metric families, `labels` added to each."""

    def __init__(self, collect: Collect, labels: Mapping[str, str]) -> None:
        self._collect = collect
        self._labels = labels

    def collect(self) -> Iterator[Family]:
        """Every metric as it stands."""
        families: dict[Metric, Family] = {}
        for sample in self._collect():
            family = families.setdefault(sample.metric, self._family(sample.metric))
            _add(family, [*self._labels.values(), *sample.labels], sample.value)
        yield from families.values()

    def describe(self) -> list[Family]:
        """Nothing, which spares a registry from collecting once to learn the names."""
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
