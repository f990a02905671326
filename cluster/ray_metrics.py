"""Exports the metrics of the memory service to Ray: passes samples to `ray.util.metrics` every few seconds.

Ray's histograms take single durations, not counts by bucket, so a histogram becomes the three counters that Prometheus
would make of it: NAME_bucket_total with the label `le`, NAME_count_total and NAME_sum_total.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from memory_service.metrics.metrics import Distribution, Kind, Metric, Sample

_PERIOD_SECONDS = 5.0

_log = logging.getLogger(__name__)

Point = tuple[str, dict[str, str], float]  # name, labels, value so far


class RayMetrics:
    """Exports samples from a background thread until closed, in a process that Ray runs."""

    def __init__(
        self,
        collect: Callable[[], Iterable[Sample]],
        labels: Mapping[str, str],
        period_s: float = _PERIOD_SECONDS,
    ) -> None:
        self._collect = collect
        self._labels = dict(labels)
        self._period_s = period_s
        self._instruments: dict[str, Any] = {}
        self._exported: dict[tuple[str, ...], float] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ray-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Export a last time and end the thread."""
        self._stopping.set()
        self._thread.join()

    def export(self) -> None:
        """Take samples now and export them."""
        try:
            for sample in self._collect():
                for name, labels, value in points(sample):
                    self._record(sample.metric, name, self._labels | labels, value)
        except Exception:  # a failing export must not end what it measures
            _log.exception("metrics could not be exported to Ray")

    def _run(self) -> None:
        while not self._stopping.wait(self._period_s):
            self.export()
        self.export()

    def _record(self, metric: Metric, name: str, labels: dict[str, str], value: float) -> None:
        instrument = self._instruments.get(name)
        if instrument is None:
            instrument = self._instruments[name] = _instrument(metric, name, tuple(labels))
        if metric.kind is Kind.GAUGE:
            instrument.set(value, tags=labels)
        elif (grown := self._growth((name, *labels.values()), value)) > 0:  # Ray refuses an increment of 0
            instrument.inc(grown, tags=labels)

    def _growth(self, key: tuple[str, ...], value: float) -> float:
        """How much a counter has grown. A counter that went down belongs to a new client, and began at zero."""
        before = self._exported.get(key, 0.0)
        self._exported[key] = value
        return value - before if value >= before else value


def points(sample: Sample) -> Iterator[Point]:
    """Yield the numbers of a sample, each under its own name."""
    labels = dict(zip(sample.metric.labels, sample.labels, strict=True))
    name, value = sample.metric.name, sample.value
    if not isinstance(value, Distribution):
        yield name, labels, value
        return
    for bound, reached in zip((*value.bounds, "+Inf"), accumulate(value.counts), strict=True):
        yield f"{name}_bucket_total", labels | {"le": str(bound)}, reached
    yield f"{name}_count_total", labels, value.count
    yield f"{name}_sum_total", labels, value.seconds


def _instrument(metric: Metric, name: str, labels: tuple[str, ...]) -> Any:
    from ray.util import metrics

    kind = metrics.Gauge if metric.kind is Kind.GAUGE else metrics.Counter
    return kind(name, metric.help, labels)
