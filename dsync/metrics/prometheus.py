"""dsync's metrics for Prometheus: a hook for `on_event=`.

It needs the package prometheus-client: pip install 'dsync-redis[prometheus]'
"""

from collections.abc import Callable
from weakref import WeakKeyDictionary

from dsync.metrics.catalogue import BUCKETS, METRICS, Metric
from dsync.metrics.names import Template
from dsync.metrics.recorder import Record, Recorder

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ImportError as _missing:
    raise ImportError(
        "dsync.metrics.prometheus needs the package prometheus-client: "
        "pip install 'dsync-redis[prometheus]'",
        name=_missing.name,
    ) from _missing

__all__ = ["PrometheusHook"]

Collector = Counter | Gauge | Histogram

# A registry has one collector of each metric, however many hooks there are.
_collectors: "WeakKeyDictionary[CollectorRegistry, dict[Metric, Collector]]" = WeakKeyDictionary()


class PrometheusHook(Recorder):
    """Counts and measures what a client tells of::

        client = dsync.connect("redis://localhost:6379", on_event=PrometheusHook())
        prometheus_client.start_http_server(9100)

    One hook may serve several clients, and several hooks one registry.

    Args:
        registry: where the metrics are; the process's own, if not given.
        template: what makes the label `name` of a name, as a callable, or as a list of patterns
            such as `order:*`, of which the first that matches becomes the label.  Without it a `*`
            stands for each number, run of eight or more hexadecimal digits, and UUID.
        max_names: how many different labels `name` there may be; all further are "other".

    Raises:
        ValueError: the registry has other metrics of these names.
    """

    def __init__(
        self,
        *,
        registry: CollectorRegistry = REGISTRY,
        template: Template | None = None,
        max_names: int = 200,
    ) -> None:
        super().__init__(template, max_names)
        collectors = _collectors.get(registry)
        if collectors is None:
            collectors = {metric: _collector(metric, registry) for metric in METRICS}
            _collectors[registry] = collectors
        self._collectors = collectors

    def bind(self, metric: Metric, values: tuple[str, ...]) -> Record:
        collector = self._collectors[metric]
        child = collector.labels(*values) if values else collector
        record: Callable[[float], None]
        record = child.observe if isinstance(child, Histogram) else child.inc
        return record


def _collector(metric: Metric, registry: CollectorRegistry) -> Collector:
    name = metric.name.replace(".", "_")
    if metric.type == "counter":  # `_total` is added by itself
        return Counter(name, metric.help, metric.labels, registry=registry)
    if metric.type == "gauge":
        return Gauge(
            name, metric.help, metric.labels, registry=registry, multiprocess_mode="livesum"
        )
    name += "_seconds"
    return Histogram(name, metric.help, metric.labels, registry=registry, buckets=BUCKETS)
