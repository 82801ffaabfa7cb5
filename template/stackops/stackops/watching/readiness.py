"""Whether the server can work: what its health check, which asks through the API, has written down."""

import json
import time
from collections.abc import Mapping

from prometheus_client.core import GaugeMetricFamily

from stackops import ready
from stackops.watching import Figures, gauge

OLD = 30
"""Seconds after which a result says nothing any more: a check comes every 5 s and takes at most 10."""


def figures(env: Mapping[str, str]) -> Figures:
    """Yield 1 or 0, and how long each part took to answer. A server that does not run is not ready."""
    try:
        last = json.loads(ready.noted().read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        last = {"time": 0, "seconds": {}, "error": ""}
    works = not last["error"] and time.time() - last["time"] <= OLD
    yield gauge("stack_ready", "The server works: its API, the database, the artifact store.", int(works))
    took = GaugeMetricFamily(
        "stack_ready_seconds", "How long a small question to each part took.", labels=["part"]
    )
    for part, seconds in last["seconds"].items():
        took.add_metric([part], seconds)
    if works:
        yield took
