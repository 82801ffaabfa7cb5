"""Whether the servers can work: what their health checks, which ask through the API, have written down."""

import json
import time
from collections.abc import Mapping
from typing import Any

from prometheus_client.core import GaugeMetricFamily

from stackops import ready, settings
from stackops.watching import Figures, gauge

OLD = 30
"""Seconds after which a result says nothing any more: a check comes every 5 s and takes at most 10."""


def fresh(now: float) -> list[dict[str, Any]]:
    """Return the last result of each server that has one which still says something."""
    found = []
    for path in ready.notes():
        try:
            last = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            continue
        if now - last["time"] <= OLD:
            found.append(last)
    return found


def figures(env: Mapping[str, str]) -> Figures:
    """Yield 1 or 0, how many servers are ready, and how long each part took to answer where it took longest.

    A server that does not run is not ready.
    """
    working = [last for last in fresh(time.time()) if not last["error"]]
    meaning = "The server works: its API, the database, the artifact store."
    yield gauge("stack_ready", meaning, int(bool(working)))
    yield gauge("stack_servers_ready", "Servers that work.", len(working))
    yield gauge("stack_servers", "Servers that there should be.", settings.servers(env))
    took = GaugeMetricFamily(
        "stack_ready_seconds", "How long a small question to each part took.", labels=["part"]
    )
    for part in sorted({part for last in working for part in last["seconds"]}):
        took.add_metric([part], max(last["seconds"].get(part, 0.0) for last in working))
    if working:
        yield took
