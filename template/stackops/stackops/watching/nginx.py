"""What nginx counts of itself, at a port that only the stack's own containers reach."""

import re
import urllib.request
from collections.abc import Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from stackops.watching import Figures, gauge

STATUS = "http://nginx:8081/status"
NUMBERS = re.compile(
    r"Active connections: (\d+)\s+server accepts handled requests\s+(\d+) (\d+) (\d+)\s+"
    r"Reading: (\d+) Writing: (\d+) Waiting: (\d+)"
)


def shown(text: str) -> Figures:
    """Yield the figures of a status page. Raises ValueError if it is none."""
    if not (found := NUMBERS.search(text)):
        raise ValueError("this is not the status page of nginx")
    active, accepted, handled, requests, *doing = map(int, found.groups())
    yield gauge("stack_nginx_up", "Whether nginx answers.", 1)
    yield CounterMetricFamily(
        "stack_nginx_requests", "Requests, of everything that nginx answers.", value=requests
    )
    yield CounterMetricFamily("stack_nginx_connections", "Connections that were accepted.", value=accepted)
    dropped = accepted - handled
    yield CounterMetricFamily(
        "stack_nginx_dropped", "Connections that were accepted and dropped.", value=dropped
    )
    now = GaugeMetricFamily("stack_nginx_connections_now", "Open connections.", labels=["state"])
    for state, number in zip(("reading", "writing", "waiting"), doing, strict=True):
        now.add_metric([state], number)
    yield now


def figures(env: Mapping[str, str]) -> Figures:
    """Ask nginx. While it does not answer there is one figure that says so."""
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(STATUS, timeout=5) as answer:
            text = answer.read(4096).decode()
    except OSError:
        yield gauge("stack_nginx_up", "Whether nginx answers.", 0)
        return
    yield from shown(text)
