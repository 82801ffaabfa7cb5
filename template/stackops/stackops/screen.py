"""What is refused before MLflow looks at a request: changes from other people's web pages, and giants.

MLflow looks at the origin of requests to its API only, and /graphql and /v1/traces are none of it. It also
reads a whole body into memory before it asks who sends it: one request of a stranger could fill all of it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from mlflow.server.fastapi_security import get_allowed_origins
from mlflow.server.security_utils import CORS_BLOCKED_MSG, should_block_cors_request
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stackops import failures

MIB = 1 << 20
LIMIT = 100 * MIB
"""Bytes that a request may have; artifacts, which are streamed, may have any number."""
STRANGERS = MIB
"""Bytes that a request may have before its sender has shown who it is, where MLflow asks for that."""
ARTIFACTS = ("/api/2.0/mlflow-artifacts/artifacts/", "/ajax-api/2.0/mlflow-artifacts/artifacts/")

Known = Callable[[Request], Any]


class Screen:
    """ASGI middleware in front of MLflow's application.

    `known` gives back who sends a request, or None: it is asked for big bodies only. Without it everybody
    may send them (the proxy has asked already, or nobody asks).
    """

    def __init__(self, app: ASGIApp, known: Known | None = None) -> None:
        self.app = app
        self.known = known
        self.origins = get_allowed_origins()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on with the body that was read."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = Request(scope)
        if foreign(request, self.origins):
            return await PlainTextResponse(CORS_BLOCKED_MSG, 403)(scope, receive, send)
        if streamed(request):
            return await self.app(scope, receive, send)
        messages: list[Message] = []
        if await self.too_big(request, receive, messages):
            # The rest is not read: the connection cannot be used again.
            answer = PlainTextResponse("The request is too big", 413, {"Connection": "close"})
            return await answer(scope, receive, send)
        body = b"".join(message.get("body", b"") for message in messages) if takes_json(request) else b""
        if body and not failures.is_object(body):
            return await PlainTextResponse("The body must be a JSON object", 400)(scope, receive, send)
        return await self.app(scope, again(messages, receive), send)

    async def too_big(self, request: Request, receive: Receive, messages: list[Message]) -> bool:
        """Read the body into `messages`; stop and return True once it is more than its sender may send."""
        announced = request.headers.get("content-length", "")
        size, limit = int(announced) if announced.isdecimal() else 0, STRANGERS if self.known else LIMIT
        received, more = 0, True
        while True:
            if size > limit == STRANGERS and await asyncio.to_thread(self.known, request):
                limit = LIMIT
            if size > limit:
                return True
            if not more:
                return False
            message = await receive()
            messages.append(message)
            received += len(message.get("body", b""))
            size, more = max(size, received), message.get("more_body", False)


def foreign(request: Request, origins: list[str]) -> bool:
    """Whether a web page that is not this stack's wants to change something, by MLflow's own rule."""
    return should_block_cors_request(request.headers.get("origin", ""), request.method, origins)


def takes_json(request: Request) -> bool:
    """Whether MLflow fails at anything but a JSON object, and closes a connection that others use too."""
    return request.scope["path"].startswith("/gateway/")


def streamed(request: Request) -> bool:
    """Whether the body goes on to the artifact store piece by piece."""
    return request.method == "PUT" and request.scope["path"].startswith(ARTIFACTS)


def again(messages: list[Message], receive: Receive) -> Callable[[], Awaitable[Message]]:
    """Return a `receive` that first gives back these messages, and forgets each."""
    messages.reverse()

    async def next_one() -> Message:
        return messages.pop() if messages else await receive()

    return next_one
