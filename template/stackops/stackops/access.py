"""The server's access log: one line of JSON per request, for a stack without a reverse proxy.

Uvicorn's own would show what comes after the `?` of an address, and neither time nor user nor bytes. On a
terminal the lines are for people.
"""

import functools
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from stackops import ready

LONGEST = 1000
"""Characters of a path that are shown: a line is written in one piece, whatever the other workers write."""


def entry(scope: dict[str, Any], when: float, **measured: Any) -> dict[str, Any]:
    """Return what is noted of a request: nothing that could be a secret, so no header and no query."""
    path = (scope.get("raw_path") or scope["path"].encode()).decode("ascii", "backslashreplace")
    noted = {"time": datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds")}
    if "stack.user" in scope:
        noted["user"] = scope["stack.user"]
    address = (scope.get("client") or ("",))[0]
    return noted | {"method": scope["method"], "path": path[:LONGEST], **measured, "address": address}


compact = functools.partial(json.dumps, separators=(",", ":"))


def text(noted: dict[str, Any]) -> str:
    """Return the line for people."""
    user = f" {noted['user']}" if noted.get("user") else ""
    size = f"{noted['bytes_in']} bytes in, {noted['bytes_out']} out"
    return (
        f"{noted['time'][11:19]} {noted['status']} {noted['method']} {noted['path']}{user}"
        f" {noted['seconds']:.3f} s, {size}"
    )


class Log:
    """ASGI middleware in front of everything else."""

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        show: Callable[[dict[str, Any]], str] = compact,
        write: Callable[[bytes], Any] = lambda line: os.write(1, line),
    ):
        self.app, self.show, self.write = app, show, write

    async def __call__(self, scope, receive, send) -> None:
        """Pass the request on, and note how it ended. 499: the client went away before the answer began."""
        if scope["type"] != "http" or ready.own(scope):
            return await self.app(scope, receive, send)
        when, start = time.time(), time.perf_counter()
        measured = {"status": 499, "bytes_in": 0, "bytes_out": 0}

        async def counted_in():
            message = await receive()
            measured["bytes_in"] += len(message.get("body", b""))
            return message

        async def counted_out(message) -> None:
            if message["type"] == "http.response.start":
                measured["status"] = message["status"]
            measured["bytes_out"] += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, counted_in, counted_out)
        except Exception:
            measured["status"] = 500
            raise
        finally:
            measured["seconds"] = round(time.perf_counter() - start, 3)
            self.write(self.show(entry(scope, when, **measured)).encode() + b"\n")


def register(app) -> None:
    """Put the log in front of the application."""
    app.add_middleware(Log, show=text if sys.stdout.isatty() else compact)
