"""The database file and what is written ahead of it."""

from collections.abc import Mapping

from prometheus_client.core import GaugeMetricFamily

from stackops.backends.sqlite import database
from stackops.watching import Figures


def figures(env: Mapping[str, str]) -> Figures:
    """Yield the size of both; a log that keeps growing means that a reader never ends."""
    size = GaugeMetricFamily("stack_database_bytes", "Size of the database's files.", labels=["file"])
    main = database(env)
    for path in (main, main.with_name(f"{main.name}-wal")):
        if path.exists():
            size.add_metric([path.name], path.stat().st_size)
    yield size
