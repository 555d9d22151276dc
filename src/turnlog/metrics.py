"""What an operator watches, in Prometheus' words.

Requests are counted in plain integers, a fraction of a microsecond each, and turned into metric families when somebody
asks: labels are bounded by the operations table and the list of statuses.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from prometheus_client.metrics_core import Metric

    from turnlog.store.protocol import Health

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4.encode()
"""Of what ``expose`` gives: the version that every Prometheus reads."""
_LATENCY_S = (
    0.0005,
    0.001,
    0.002,
    0.004,
    0.008,
    0.016,
    0.032,
    0.064,
    0.128,
    0.256,
    0.512,
    1.0,
    2.5,
    5.0,
    10.0,
)
_BATCH_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


class _Histogram:
    """Counts per bucket; a value belongs to the first bucket whose bound it does not exceed."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def buckets(self) -> list[tuple[str, float]]:
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        return list(zip(bounds, (float(count) for count in accumulate(self._counts)), strict=True))

    @property
    def total(self) -> float:
        return self._sum


class Metrics(Collector):
    """Everything that is counted; one registry of its own, so that two servers in one process do not mix."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, int], int] = {}
        self._latency: dict[str, _Histogram] = {}
        self._batch_rows = _Histogram(_BATCH_ROWS)
        self._commit_s = _Histogram(_LATENCY_S)
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self._health: Health | None = None
        self._registry = CollectorRegistry()
        self._registry.register(self)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)

    def request(self, operation: str, status: int, seconds: float) -> None:
        """One request was answered."""
        counted = (operation, status)
        self._requests[counted] = self._requests.get(counted, 0) + 1
        histogram = self._latency.get(operation)
        if histogram is None:
            histogram = self._latency[operation] = _Histogram(_LATENCY_S)
        histogram.observe(seconds)

    def batch(self, rows: int, seconds: float) -> None:
        """One transaction was committed."""
        self._batch_rows.observe(rows)
        self._commit_s.observe(seconds)

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Add a value that is read when somebody asks."""
        self._gauges[name] = (help_text, read)

    def expose(self, health: Health | None) -> bytes:
        """Everything in Prometheus' text format; ``health`` is the store's, ``None`` where it does not answer."""
        self._health = health
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Called by the registry."""
        requests = CounterMetricFamily(
            "turnlog_requests", "Requests answered, by operation and status.", labels=("operation", "status")
        )
        for (operation, status), count in list(self._requests.items()):
            requests.add_metric((operation, str(status)), count)
        yield requests
        latency = HistogramMetricFamily(
            "turnlog_request_seconds", "Time from a request's head to its answer.", labels=("operation",)
        )
        for operation, histogram in list(self._latency.items()):
            latency.add_metric((operation,), histogram.buckets(), histogram.total)
        yield latency
        yield _family("turnlog_batch_rows", "Rows recorded in one transaction.", self._batch_rows)
        yield _family("turnlog_commit_seconds", "Time of one transaction, its sync included.", self._commit_s)
        for name, (help_text, read) in self._gauges.items():
            yield GaugeMetricFamily(name, help_text, value=read())
        yield GaugeMetricFamily("turnlog_store_up", "1 where the store answers.", value=float(self._health is not None))
        if self._health is not None:
            yield GaugeMetricFamily("turnlog_store_bytes", "Size of the database.", value=self._health.data_bytes)
            yield GaugeMetricFamily("turnlog_store_wal_bytes", "Size of its WAL.", value=self._health.log_bytes)


def _family(name: str, help_text: str, histogram: _Histogram) -> HistogramMetricFamily:
    return HistogramMetricFamily(name, help_text, buckets=histogram.buckets(), sum_value=histogram.total)
