"""Shows the stack's figures to Prometheus, at a port that is published nowhere (the service metrics).

A part that cannot be looked at is told by `stack_figures_failed`; the others are there all the same.
"""

import argparse
import importlib
import os
import pkgutil
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable, Mapping
from types import ModuleType

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from stackops import settings, watching
from stackops.errors import StackError, one_line
from stackops.watching import Figures

HELP = "show the stack's figures to Prometheus (the service metrics)"
PORT = 9464


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument("--check", action="store_true", help="do the figures come (the health check)")


def parts() -> list[ModuleType]:
    """Return what this stack has to look at."""
    names = sorted(module.name for module in pkgutil.iter_modules(watching.__path__))
    return [importlib.import_module(f"stackops.watching.{name}") for name in names]


class Stack(Collector):
    """All figures of the stack, looked at when somebody asks."""

    def __init__(self, env: Mapping[str, str], looked_at: Iterable[ModuleType]):
        self.env, self.parts = env, list(looked_at)
        self.told: set[str] = set()
        self.one_at_a_time = threading.Lock()

    def collect(self) -> Figures:
        """Yield the figures of every part."""
        with self.one_at_a_time:
            found = list(self.looked())
        yield from found

    def looked(self) -> Figures:
        """Yield them while nobody else looks."""
        failed = GaugeMetricFamily(
            "stack_figures_failed", "Whether a part could not be looked at.", labels=["part"]
        )
        took = GaugeMetricFamily(
            "stack_figures_seconds", "How long the look at a part took.", labels=["part"]
        )
        for part in self.parts:
            name, start, found = part.__name__.rpartition(".")[2], time.monotonic(), []
            try:
                found = list(part.figures(self.env))
                self.told.discard(name)
            except Exception as error:
                if name not in self.told:
                    print(
                        f"stackops: {name} cannot be looked at: {one_line(error)}",
                        file=sys.stderr,
                        flush=True,
                    )
                self.told.add(name)
            failed.add_metric([name], int(name in self.told))
            took.add_metric([name], time.monotonic() - start)
            yield from found
        yield failed
        yield took


def check(port: int) -> None:
    """Raises StackError unless figures come."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=15) as answer:
            whole = b"stack_figures_failed" in answer.read()
    except OSError as error:
        raise StackError(f"the figures do not come: {one_line(error)}") from None
    if not whole:
        raise StackError("the figures are not whole; see the log of the service metrics")


def run(args: argparse.Namespace) -> None:
    """Show the figures until SIGTERM. Raises StackError if the health check fails."""
    if args.check:
        return check(PORT)
    registry = CollectorRegistry()
    registry.register(Stack(settings.present(os.environ), parts()))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    start_http_server(PORT, registry=registry)
    print(f"the figures are at port {PORT}", flush=True)
    while True:
        signal.pause()
