"""What an operator watches, in Prometheus' words.

Requests are counted in plain integers, a fraction of a microsecond each, and turned into metric families when somebody
asks: labels are bounded by the operations table and the list of statuses. One of several workers shows what all of
them count, each sample with its worker's number.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING

import msgspec
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
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

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
_MOST_ATTEMPTED = 1000
"""Of how many webhooks and outcomes attempts are counted one by one."""
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


class _Page(Collector):
    """Families that are there already, as something to collect."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class Metrics(Collector):
    """Everything that is counted; one registry of its own, so that two servers in one process do not mix.

    With ``worker``, of the worker with that number; ``ask_others`` then gives what the others ``tell``, by their
    numbers, and ``None`` for one that does not answer.
    """

    def __init__(
        self,
        worker: int | None = None,
        ask_others: Callable[[], Awaitable[Mapping[int, bytes | None]]] | None = None,
    ) -> None:
        self._worker = worker
        self._ask_others = ask_others
        self._requests: dict[tuple[str, int], int] = {}
        self._latency: dict[str, _Histogram] = {}
        self._batch_rows = _Histogram(_BATCH_ROWS)
        self._commit_s = _Histogram(_LATENCY_S)
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self._labelled: dict[str, tuple[str, str, Callable[[], Mapping[str, float]]]] = {}
        self._attempts: dict[tuple[str, str], int] = {}
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

    def attempt(self, webhook: str, outcome: str) -> None:
        """An attempt to deliver an event came to ``outcome``; or the event was given up.

        Webhooks come and go as callers like: those beyond the first few hundred are counted as one.
        """
        counted = (webhook, outcome)
        if counted not in self._attempts and len(self._attempts) >= _MOST_ATTEMPTED:
            counted = ("others", outcome)
        self._attempts[counted] = self._attempts.get(counted, 0) + 1

    def gauges(self, name: str, help_text: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        """Add values that are read when somebody asks, one for each of a label's values."""
        self._labelled[name] = (help_text, label, read)

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Add a value that is read when somebody asks."""
        self._gauges[name] = (help_text, read)

    async def expose(self, health: Health | None) -> bytes:
        """Everything in Prometheus' text format; ``health`` is the store's, ``None`` where it does not answer."""
        if self._worker is None or self._ask_others is None:
            return generate_latest(self._registry) + generate_latest(_Page(_of_the_store(health)))
        told = {self._worker: self.tell()} | dict(await self._ask_others())
        together: dict[str, list[str]] = {}
        up = GaugeMetricFamily("turnlog_worker_up", "1 where the worker answered the others.", labels=("worker",))
        for worker, families in sorted((worker, _told(text)) for worker, text in told.items()):
            up.add_metric((str(worker),), float(families is not None))
            for head, samples in families or ():
                together.setdefault(head, []).append(samples)
        text = "".join(head + "".join(samples) for head, samples in together.items())
        return text.encode() + generate_latest(_Page((up, *_of_the_store(health))))

    def tell(self) -> bytes:
        """What another worker needs to show this one's figures beside its own: heads of families, and their samples.

        As text already, so that the one that is asked for all of them has little to do.
        """
        labels = {"worker": str(self._worker)}
        families = []
        for family in self._registry.collect():
            family.samples = [sample._replace(labels=sample.labels | labels) for sample in family.samples]
            help_line, type_line, *samples = generate_latest(_Page((family,))).decode().splitlines(keepends=True)
            families.append((help_line + type_line, "".join(samples)))
        return msgspec.msgpack.encode(families)

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
        for name, (help_text, label, read_all) in self._labelled.items():
            family = GaugeMetricFamily(name, help_text, labels=(label,))
            for value, figure in read_all().items():
                family.add_metric((value,), figure)
            yield family
        attempts = CounterMetricFamily(
            "turnlog_webhook_attempts",
            "Attempts to deliver an event, by webhook and what came of them.",
            labels=("webhook", "outcome"),
        )
        for (webhook, outcome), count in list(self._attempts.items()):
            attempts.add_metric((webhook, outcome), count)
        yield attempts


def _told(text: bytes | None) -> list[tuple[str, str]] | None:
    """What a worker told; nothing where it fell silent halfway."""
    try:
        return None if text is None else msgspec.msgpack.decode(text, type=list[tuple[str, str]])
    except msgspec.DecodeError:
        return None


def _of_the_store(health: Health | None) -> Iterable[Metric]:
    """What is the same whoever is asked."""
    yield GaugeMetricFamily("turnlog_store_up", "1 where the store answers.", value=float(health is not None))
    if health is not None:
        yield GaugeMetricFamily("turnlog_store_bytes", "Size of the database.", value=health.data_bytes)
        if health.log_bytes is not None:
            yield GaugeMetricFamily("turnlog_store_wal_bytes", "Size of its WAL.", value=health.log_bytes)


def _family(name: str, help_text: str, histogram: _Histogram) -> HistogramMetricFamily:
    return HistogramMetricFamily(name, help_text, buckets=histogram.buckets(), sum_value=histogram.total)
