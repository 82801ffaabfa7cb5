"""A read replica of the database, read from where what is read may be a moment old.

MLflow sends every read to the copy, also those of a request that writes: the first run of an experiment that
was made a moment ago is refused, because the copy does not know the experiment yet. Here a request that
writes also reads from the database, and so does one that found nothing in the copy.
"""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stackops.sessions import Sessions

ONLY_READS = re.compile(
    r"search|/graphql$|/get-latest-versions$|/batchGetInfos$|/traces/metrics$|/calculate-filter-correlation$"
)
"""Paths of requests that read although their method is POST."""
API = re.compile(r"(^|/)(ajax-)?api/")

FROM_COPY: ContextVar[bool] = ContextVar("from_copy", default=False)
"""Whether reads of the request that is answered now go to the copy."""


def routing(original: Callable[..., Sessions]) -> Callable[..., Sessions]:
    """Let what MLflow makes its sessions with look at FROM_COPY first."""

    def made(to_write: Any, to_read: Any, db_type: str) -> Sessions:
        with_copy, without = original(to_write, to_read, db_type), original(to_write, to_write, db_type)

        def session(read_only: bool = True) -> AbstractContextManager[Any]:
            return (with_copy if FROM_COPY.get() else without)(read_only=read_only)

        return session

    return made


class Middleware:
    """ASGI middleware: says where the reads of a request go; the database has what the copy has not."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, from the copy if it may be."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        get, path = scope["method"] in ("GET", "HEAD"), scope["path"]
        FROM_COPY.set(get or bool(scope["method"] == "POST" and ONLY_READS.search(path)))
        if not (get and API.search(path)):
            return await self.app(scope, receive, send)
        missing = False

        async def unless_missing(message: Message) -> None:
            nonlocal missing
            if message["type"] == "http.response.start":
                missing = message["status"] == 404
            if not missing:
                await send(message)

        async def nothing_more() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        await self.app({**scope}, receive, unless_missing)
        if missing:
            FROM_COPY.set(False)
            await self.app({**scope}, nothing_more, send)
