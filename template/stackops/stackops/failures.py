"""What clients are told when the artifact store fails, when the database has no connection left for them, or
when they send something else than a JSON object.

MLflow itself would say Internal Server Error.

The stock client tries again at 500 and 503, for minutes, and then tells how often it tried but not why. So a
failure that may pass is answered with 503, and so is a store that nobody reaches: it may come back. A
full disk, and a store that keeps answering with failures, are answered with 507: the client gives up at once
and shows the sentence.
"""

import errno
import json
import logging
import os
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from stackops import settings
from stackops.errors import one_line

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from werkzeug.exceptions import InternalServerError

log = logging.getLogger("uvicorn.error")

LASTING = 30
"""Seconds of failures after which one no longer passes by itself."""
CALM = 60
"""Seconds without a failure after which an earlier one is over."""
FULL = (errno.ENOSPC, errno.EDQUOT)
UNREACHABLE = {
    "ConnectionError",
    "HTTPClientError",
    "ServiceRequestError",
    "RequestException",
    "TransportError",
}
"""How the stores' client libraries call, in their own class or one it comes from, that nobody answered."""


ODD = re.compile(r"[\\\x00-\x1f]|//|(^|[/=])\.\.?(/|&|$)")
"""Names of artifacts that some stores do not take: with backslashes, empty parts, dots alone."""
UNFIT = "The artifact store takes no such name"


class Trouble:
    """Remembers since when this process sees a store fail."""

    def __init__(self) -> None:
        self.first = self.last = float("-inf")

    def lasts(self, now: float) -> bool:
        """Note a failure; return whether failures go on for longer than a restart takes."""
        if now - self.last > CALM:
            self.first = now
        self.last = now
        return now - self.first >= LASTING


TROUBLE = Trouble()


def verdict(error: Exception, env: Mapping[str, str], trouble: Trouble, now: float) -> tuple[int, str]:
    """Return the HTTP status and the sentence for an exception of the artifact store."""
    where = f"artifact store {settings.artifact_uri(env)}"
    if isinstance(error, OSError) and error.errno in FULL:
        return 507, f"{where}: {error.strerror}; make room, or enlarge its disk"
    explain = getattr(settings.store(env), "explain", None)
    text = str(explain(error, where)) if explain else f"{where}: {one_line(error)}"
    lasts = trouble.lasts(now) and not UNREACHABLE & {cls.__name__ for cls in type(error).__mro__}
    return (507 if lasts else 503), text


def unfit(address: str, error: BaseException | None) -> bool:
    """Whether the store has refused a request (400) for the odd name in this address."""
    known = getattr(error, "response", None)
    status = known.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(known, dict) else None
    return status == 400 and bool(ODD.search(unquote(unquote(address))))


async def answer(request: "Request", error: Exception) -> "Response":
    """Answer a request in which an unexpected exception was raised; the application still logs it."""
    from starlette.responses import JSONResponse, PlainTextResponse

    if "/mlflow-artifacts/" not in request.url.path:
        return PlainTextResponse("Internal Server Error", 500)
    if unfit(request.url.path, error):
        return JSONResponse({"error_code": "INVALID_PARAMETER_VALUE", "message": UNFIT}, 400)
    status, text = verdict(error, os.environ, TROUBLE, time.monotonic())
    return JSONResponse({"error_code": "TEMPORARILY_UNAVAILABLE", "message": text}, status)


class Answered:
    """ASGI middleware around the whole application: an exception after the last byte of an answer ends here.

    Starlette answers 500 and raises the exception again; uvicorn then closes the connection, although the
    answer does not say so. A proxy may just have sent somebody else's request there, who would get 502.
    """

    def __init__(self, app: "ASGIApp") -> None:
        self.app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> Any:
        """Pass the request on."""
        complete = False

        async def watch(message: "Message") -> None:
            nonlocal complete
            await send(message)
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self.app(scope, receive, watch)
        except Exception:
            if not complete:
                raise
            log.exception("Exception in ASGI application")


class AllInUse(Exception):
    """No connection to the database became free in time."""


def let_wait() -> None:
    """Answer a request for which no connection to the database became free with 503: clients try again.

    MLflow makes 400 of SQLAlchemy's own exception, which ends a training run as if it were to blame.
    """
    from sqlalchemy import exc, pool

    take = pool.QueuePool._do_get

    def take_in_time(self: pool.QueuePool) -> Any:
        try:
            return take(self)
        except exc.TimeoutError as error:
            told = AllInUse(f"all connections to the database were in use for {self.timeout():.0f} s")
            raise exc.OperationalError(None, None, told) from error

    pool.QueuePool._do_get = take_in_time


def is_object(body: bytes) -> bool:
    """Whether a body is a JSON object, as MLflow's API takes them."""
    try:
        return isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return False


def query_fault(body: bytes) -> str:
    """Return what is wrong with a body that should hold a GraphQL query, or ""."""
    from graphql import GraphQLError, parse

    try:
        parse(json.loads(body)["query"])
    except GraphQLError as error:
        return one_line(error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return "The body of the request must be a JSON object with a query"
    return ""


def blame(error: "InternalServerError") -> "InternalServerError | tuple[dict[str, str], int]":
    """Answer a request that raised an exception in MLflow: 400 if that is its sender's fault."""
    from flask import request

    body = request.get_data()
    if unfit(request.full_path.rstrip("?"), error.original_exception):
        fault = UNFIT
    elif request.path == "/graphql":
        fault = query_fault(body)
    elif not body or request.form or is_object(body):
        fault = ""
    else:
        fault = "The body of the request must be a JSON object"
    return ({"error_code": "BAD_REQUEST", "message": fault}, 400) if fault else error
