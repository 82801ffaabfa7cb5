"""From the server (ASGI) to MLflow's Flask application (WSGI) and back, by one change of threads each way.

Starlette's bridge, which MLflow uses, hands over every part of an answer by itself: its head, each piece and
the end, through two queues and a task. That was a fifth of the processor time of a read. Nearly all answers
are one piece of known length. What comes in many is sent piece by piece, and the next is made when the last
has gone: Starlette keeps in memory what a slow client has yet to take.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import anyio.from_thread
import anyio.to_thread
from mlflow.server import fastapi_app
from starlette.middleware.wsgi import build_environ
from starlette.routing import BaseRoute, Match, Mount
from werkzeug.wsgi import FileWrapper

if TYPE_CHECKING:
    from fastapi import FastAPI
    from flask import Flask
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

PIECE = 256 * 1024
"""Bytes that are read of a file at a time; Flask by itself reads 8 KiB."""


class Bridge:
    """ASGI application that is a WSGI application; `other` gets what is no HTTP."""

    def __init__(self, app: Callable[..., Iterable[bytes]], other: "ASGIApp") -> None:
        self.app, self.other = app, other

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer a request, as starlette.middleware.wsgi does."""
        if scope["type"] != "http":
            return await self.other(scope, receive, send)
        pieces, more = [], True
        while more:
            message = await receive()
            pieces.append(message.get("body", b""))
            more = message.get("more_body", False)
        environ = build_environ(scope, b"".join(pieces))
        for message in await anyio.to_thread.run_sync(self.answer, environ, send):
            await send(message)

    def answer(self, environ: dict[str, Any], send: "Send") -> "list[Message]":
        """Call the application, in a thread; return what is still to be sent."""
        head: Message = {"type": "http.response.start"}
        environ["wsgi.file_wrapper"] = lambda file, size=PIECE: FileWrapper(file, max(size, PIECE))

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
            head["status"] = int(status.split(" ", 1)[0])
            head["headers"] = [
                (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers
            ]

        pieces, begun = self.app(environ, start), False
        try:
            for piece in pieces:
                if not begun and (b"content-length", b"%d" % len(piece)) in head["headers"]:
                    return [head, {"type": "http.response.body", "body": piece}]
                if not begun:
                    anyio.from_thread.run(send, head)
                    begun = True
                body = {"type": "http.response.body", "body": piece, "more_body": True}
                anyio.from_thread.run(send, body)
        finally:
            if close := getattr(pieces, "close", None):
                close()
        end: Message = {"type": "http.response.body", "body": b""}
        return [end] if begun else [head, end]


class Straight(Mount):
    """The way to some paths of an application, without a look at all other routes."""

    def __init__(self, app: "ASGIApp", paths: Iterable[str]) -> None:
        super().__init__("/", app)
        self.paths = frozenset(paths)

    def matches(self, scope: "Scope") -> tuple[Match, "Scope"]:
        """Say whether the request is for one of them."""
        return super().matches(scope) if scope.get("path") in self.paths else (Match.NONE, {})


def lay(app: "FastAPI", flask_app: "Flask") -> None:
    """Put the bridge where MLflow's own is, and first of all for what no other route has.

    Raises LookupError if MLflow has no bridge.
    """
    routes = app.router.routes
    bridges = [
        one for one in routes if isinstance(getattr(one, "app", None), fastapi_app._EfficientWSGIMiddleware)
    ]
    if not bridges:
        raise LookupError("MLflow's server has no bridge to Flask where it is looked for")
    theirs = bridges[0]
    theirs.app = Bridge(flask_app, theirs.app)
    others = [one for one in routes if one is not theirs]
    rules = {rule.rule for rule in flask_app.url_map.iter_rules() if not rule.arguments}
    routes.insert(0, Straight(theirs.app, (path for path in rules if not taken(path, others))))


def taken(path: str, routes: list[BaseRoute]) -> bool:
    """Whether one of the routes has this path, for some method."""
    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "path_params": {}}
    return any(route.matches(scope)[0] != Match.NONE for route in routes)
