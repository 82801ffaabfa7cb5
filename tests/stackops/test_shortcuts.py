"""What MLflow does for every request and the server here for few: who needs it still gets it."""

import asyncio
import importlib
import json
import os
import subprocess
import sys

import pytest
from fastapi import FastAPI
from stackops import shortcuts
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import JSONResponse
from starlette.types import Message


def mlflows_own() -> FastAPI:
    """Return an application with what the pinned MLflow puts around requests."""
    theirs = importlib.import_module("mlflow.server.fastapi_app")
    app = FastAPI()
    theirs.add_fastapi_workspace_middleware(app)
    theirs.add_gateway_timing_middleware(app)

    @app.get("/{path:path}")
    async def answer(path: str) -> JSONResponse:
        return JSONResponse({"path": path})

    return app


def ask(app: FastAPI, path: str, **headers: str) -> tuple[int, dict[bytes, bytes], bytes]:
    """Return status, headers and body of the application's answer."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "http_version": "1.1", "scheme": "http", "server": ("localhost", 80), "client": ("127.0.0.1", 1),
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], dict(sent[0]["headers"]), body


REQUESTS = (
    ("/api/2.0/mlflow/experiments/search", {}),
    ("/api/2.0/mlflow/experiments/search", {"x_mlflow_workspace": "team"}),
    ("/api/2.0/mlflow/experiments/search", {"x_mlflow_workspace": " "}),
    ("/api/3.0/mlflow/server-info", {"x_mlflow_workspace": "team"}),
    ("/gateway/some/mlflow/invocations", {}),
)


@pytest.mark.parametrize(("path", "headers"), REQUESTS)
def test_answers_are_mlflows(path: str, headers: dict[str, str]) -> None:
    """With and without the shortcuts a request has the same answer."""
    light = mlflows_own()
    shortcuts.take(light, {})
    before, after = (ask(app, path, **headers) for app in (mlflows_own(), light))
    timing = {name for name in before[1] if b"duration" in name}
    assert {k: v for k, v in before[1].items() if k not in timing} == {
        k: v for k, v in after[1].items() if k not in timing
    }
    assert timing <= set(after[1])
    assert before[::2] == after[::2]


def test_who_passes_by() -> None:
    """MLflow's functions are around no request but those which need them, and around all where workspaces are on."""
    light, full = mlflows_own(), mlflows_own()
    assert [one.cls for one in light.user_middleware] == [BaseHTTPMiddleware] * 2
    shortcuts.take(light, {"MLFLOW_ENABLE_WORKSPACES": "false"})
    shortcuts.take(full, {"MLFLOW_ENABLE_WORKSPACES": "true"})
    assert [one.cls for one in light.user_middleware] == [shortcuts.Seldom] * 2
    assert [one.cls for one in full.user_middleware] == [BaseHTTPMiddleware] * 2
    around: list[str] = []
    for one in light.user_middleware:
        dispatch = one.kwargs["dispatch"]

        async def noted(request, call_next, dispatch=dispatch):
            around.append(dispatch.__name__)
            return await dispatch(request, call_next)

        one.kwargs["dispatch"] = noted
    seen = []
    for path, headers in REQUESTS:
        around.clear()
        ask(light, path, **headers)
        seen.append(sorted(around))
    workspace, gateway = ["workspace_context_middleware"], ["gateway_timing_middleware"]
    assert seen == [[], workspace, workspace, workspace, gateway]


def test_what_is_not_known_stays() -> None:
    """A function of somebody else, or of a later MLflow, stays around all requests."""
    app = FastAPI()

    @app.middleware("http")
    async def somebody_elses(request, call_next):
        return await call_next(request)

    shortcuts.take(app, {})
    assert [one.cls for one in app.user_middleware] == [BaseHTTPMiddleware]


def test_a_search_looks_for_no_file() -> None:
    """MLflow's search asks for its users; the import that fails opens nothing."""
    script = """
import sys
from stackops import shortcuts
import mlflow.server.handlers
shortcuts.without_accounts()
opened = []
sys.addaudithook(lambda event, args: opened.append(args) if event == "open" else None)
try:
    from mlflow.server import auth
except ImportError:
    print("no users", opened)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout == "no users []\n", done.stderr


PERMITTED = """
import json, sys
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from mlflow.server import auth
from stackops import accounts, shortcuts
sys.path.insert(0, sys.argv[1])
from test_shortcuts import ask

def made():
    app = FastAPI()

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def answer(path: str):
        return JSONResponse({"path": path})

    auth.add_fastapi_permission_middleware(app)
    return app

light, around = made(), []
shortcuts.take(light, {}, accounts.SELDOM)
dispatch = light.user_middleware[0].kwargs["dispatch"]

async def noted(request, call_next):
    around.append(request.url.path)
    return await dispatch(request, call_next)

light.user_middleware[0].kwargs["dispatch"] = noted
paths = [*map(str, json.loads(sys.argv[2]))]
answers = [(path, ask(made(), path)[0], ask(light, path)[0], path in around) for path in paths]
print(json.dumps([light.user_middleware[0].cls.__name__, answers]))
"""


@pytest.mark.parametrize("closed", ["true", "false"])
def test_permissions_are_mlflows(closed: str) -> None:
    """Nobody in particular gets the same answers, and MLflow's permissions see each request that they judge."""
    judged = ("/gateway/x/mlflow/invocations", "/api/2.0/mlflow-artifacts/artifacts/1/a", "/ajax-api/3.0/jobs/1")
    flask = ("/api/2.0/mlflow/runs/get", "/health", "/static-files/a.js", "/", "/api/3.0/mlflow/server-info")
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "MLFLOW_BASIC_AUTH_FAIL_CLOSED": closed,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "x",
    }  # fmt: skip
    words = [sys.executable, "-c", PERMITTED, os.path.dirname(__file__), json.dumps([*judged, *flask])]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    kind, answers = json.loads(done.stdout.splitlines()[-1])
    assert kind == "Seldom"
    for path, before, after, _ in answers:
        assert before == after, path
    seen = {path for path, _, _, around in answers if around}
    assert set(judged) <= seen, seen
    assert 401 in {after for _, _, after, _ in answers}
    assert not seen & {"/health", "/static-files/a.js"}
    assert ("/api/2.0/mlflow/runs/get" in seen) == (closed == "true")
