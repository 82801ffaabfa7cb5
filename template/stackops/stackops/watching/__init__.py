"""What `stackops metrics` shows: each module here that the stack has is one part, and yields its figures."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

Figures = Iterator[Metric]


def gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    """Return a figure without labels."""
    return GaugeMetricFamily(name, meaning, value=value)
