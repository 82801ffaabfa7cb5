"""What MLflow does for every request, and this server only for those that need it.

Measured with MLflow 3.17 on two CPUs: a seventh of a write's processor time, and a fifth of a search's.
"""

import sys
from collections.abc import Callable, Mapping

from fastapi import FastAPI
from mlflow.utils.workspace_utils import WORKSPACE_HEADER_NAME
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from stackops import settings

Wanted = Callable[[Scope], bool]

HEADER = WORKSPACE_HEADER_NAME.lower().encode()


def names_workspace(scope: Scope) -> bool:
    """Whether a request names a workspace; MLflow then says that this server has none."""
    return any(name == HEADER for name, _ in scope["headers"])


def is_for_gateway(scope: Scope) -> bool:
    """Whether a request is for the AI gateway, whose answers say how long it took."""
    return "/gateway/" in scope["path"]


SELDOM: Mapping[str, Wanted] = {
    "workspace_context_middleware": names_workspace,
    "gateway_timing_middleware": is_for_gateway,
}
"""MLflow's own functions around every request, and which requests need them where workspaces are off."""


class Seldom:
    """ASGI middleware: the function is around the requests that are wanted, and the others pass by it.

    Starlette lets such a function see a request by starting a task and two queues for it, which costs more
    than all else that this server does before MLflow's own code.
    """

    def __init__(self, app: ASGIApp, dispatch: Callable, wanted: Wanted) -> None:
        self.app = app
        self.around = BaseHTTPMiddleware(app, dispatch=dispatch)
        self.wanted = wanted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, one way or the other."""
        chosen = self.around if scope["type"] == "http" and self.wanted(scope) else self.app
        await chosen(scope, receive, send)


def take(app: FastAPI, env: Mapping[str, str], more: Mapping[str, Wanted] = {}) -> None:
    """Let requests pass by what they do not need: what is in SELDOM and in `more`.

    Functions that are not known stay around all.
    """
    if not settings.has_workspaces(env):
        app.user_middleware[:] = [lighter(one, {**SELDOM, **more}) for one in app.user_middleware]


def lighter(one: Middleware, seldom: Mapping[str, Wanted]) -> Middleware:
    """Return this middleware, or what stands in for it."""
    dispatch = one.kwargs.get("dispatch") if one.cls is BaseHTTPMiddleware else None
    wanted = seldom.get(getattr(dispatch, "__name__", ""))
    return Middleware(Seldom, dispatch=dispatch, wanted=wanted) if wanted else one


def without_accounts() -> None:
    """Let MLflow find at once that it has no users of its own.

    Each search asks for them by an import, which fails here because the image has none of what it needs, and
    would be tried from the file on every time, while all other requests wait.
    """
    sys.modules.setdefault("mlflow.server.auth", None)  # type: ignore[arg-type]
