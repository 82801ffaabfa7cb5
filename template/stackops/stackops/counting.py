"""Counts the server's requests: how many, how they ended, how long they took, by route.

Each worker counts for itself, and every few seconds writes its figures to a file in the server's folder of
temporary files; `stackops metrics`, in a container of its own, reads the files of all workers. So no worker
waits for another, nothing listens, and a full disk costs figures and nothing else.
"""

import functools
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    write_to_textfile,
)
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, RequestRedirect

from stackops import ready

EVERY = 3.0
FOLDER = "figures"
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
OURS = "/stackops/"
OTHER = "other"
"""What is counted together: routes that do not exist, and methods that no client of MLflow uses."""
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)


class Routes:
    """What a request is counted under: a route of MLflow's, never a path that a client has made up."""

    def __init__(self, rules: Map):
        self.rules = rules.bind("")
        self.by_path = functools.lru_cache(4096)(self.look_up)

    def look_up(self, method: str, path: str) -> str:
        """Return the rule of the Flask application that a path belongs to."""
        try:
            return self.rules.match(path, method, return_rule=True)[0].rule
        except (HTTPException, RequestRedirect):
            return OTHER

    def name(self, scope: dict[str, Any]) -> str:
        """Return the route of a request that was answered. A browser's door and that of programs are one."""
        if scope["path"].startswith(OURS):
            return OURS
        found = getattr(scope.get("route"), "path", None) or self.by_path(scope["method"], scope["path"])
        return found.replace("/ajax-api/", "/api/", 1)


class Figures:
    """What one worker knows of itself."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "stack_requests",
            "Requests that were answered. 499: the client went away before.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "stack_request_seconds",
            "Time from the first byte of a request to the last of its answer.",
            ["route"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.bytes = Counter(
            "stack_request_bytes", "Bytes of bodies, in and out.", ["direction"], registry=self.registry
        )
        self.bytes_in, self.bytes_out = self.bytes.labels("in"), self.bytes.labels("out")
        self.running = Gauge(
            "stack_requests_running", "Requests that are being answered now.", registry=self.registry
        )

    def keep_writing(self, folder: Path, every: float = EVERY) -> threading.Thread:
        """Write the figures to a file of this process in `folder`, again and again, as long as it lives."""

        def write() -> None:
            told = False
            while True:
                try:
                    folder.mkdir(exist_ok=True)
                    write_to_textfile(str(folder / f"{os.getpid()}.prom"), self.registry)
                    told = False
                except Exception as error:
                    if not told:
                        logging.getLogger("stackops").warning("the figures cannot be written: %s", error)
                    told = True
                time.sleep(every)

        thread = threading.Thread(target=write, name="stackops-figures", daemon=True)
        thread.start()
        return thread


class Counting:
    """ASGI middleware in front of everything else but the log."""

    def __init__(self, app: Callable[..., Awaitable[None]], figures: Figures, routes: Routes):
        self.app, self.figures, self.routes = app, figures, routes

    async def __call__(self, scope, receive, send) -> None:
        """Pass the request on, and count how it ended."""
        if scope["type"] != "http" or ready.own(scope):
            return await self.app(scope, receive, send)
        start, status = time.perf_counter(), 499
        came = went = 0

        async def counted_in():
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            return message

        async def counted_out(message) -> None:
            nonlocal status, went
            if message["type"] == "http.response.start":
                status = message["status"]
            went += len(message.get("body", b""))
            await send(message)

        figures = self.figures
        figures.running.inc()
        try:
            await self.app(scope, counted_in, counted_out)
        except Exception:
            status = 500
            raise
        finally:
            figures.running.dec()
            route, method = self.routes.name(scope), scope["method"]
            figures.requests.labels(method if method in METHODS else OTHER, route, str(status)).inc()
            figures.seconds.labels(route).observe(time.perf_counter() - start)
            figures.bytes_in.inc(came)
            figures.bytes_out.inc(went)


def register(app) -> None:
    """Count in front of the application."""
    from mlflow.server import app as flask_app

    figures = Figures()
    app.add_middleware(Counting, figures=figures, routes=Routes(flask_app.url_map))
    figures.keep_writing(Path(os.environ["TMPDIR"], FOLDER))
