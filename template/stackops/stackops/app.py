"""The web application that `stackops serve` runs: MLflow's own, with a shorter way to its Flask part
(bridge.py) and one route in front of its routes, a screen in front of all (screen.py), and words for failures
of the artifact store (failures.py).

The user interface's files leave as the image has compressed them (Dockerfile), where the browser takes that.

MLflow would fetch a whole artifact from the store into TMPDIR before it sends the first byte. Here a
download passes through piece by piece, with its length announced, so that a client notices a broken one.

`mlflow server --app-name stackops` finds it by the entry point group `mlflow.app` (pyproject.toml).
"""

import asyncio
import importlib
import json
import os
import posixpath

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse
from mlflow.exceptions import MlflowException
from mlflow.server import app as flask_app
from mlflow.server import artifact_router as theirs
from mlflow.server.handlers import _add_static_prefix
from mlflow.utils.mime_type_utils import _guess_mime_type
from mlflow.utils.uri import validate_path_is_safe
from whitenoise import WhiteNoise

from stackops import answers, balance, bridge, failures, screen, sessions, settings, shortcuts

router = APIRouter()

FOUR_WEEKS = 28 * 24 * 60 * 60
"""Seconds for which a browser keeps a file of the user interface, as MLflow tells it."""


@router.get("/api/2.0/mlflow-artifacts/artifacts/{artifact_path:path}")
@router.get("/ajax-api/2.0/mlflow-artifacts/artifacts/{artifact_path:path}")
async def download_artifact(artifact_path: str) -> Response:
    """Answer like MLflow's own route (mlflow/server/artifact_router.py), without a copy on disk."""
    try:
        path = theirs._get_workspace_scoped_path(validate_path_is_safe(artifact_path))
        size, pieces = await asyncio.to_thread(theirs._get_artifact_repo().read, path)
    except MlflowException as error:
        return JSONResponse(json.loads(error.serialize_as_json()), error.get_http_status_code())
    return StreamingResponse(
        pieces,
        headers={
            "Content-Type": _guess_mime_type(path),
            "Content-Length": str(size),
            "Content-Disposition": theirs._content_disposition(posixpath.basename(path)),
            "X-Content-Type-Options": "nosniff",
        },
    )


def create_app() -> FastAPI:
    """Return the application, with logins and permissions where the stack has them."""
    known, seldom = None, {}
    sessions.prepare()
    if accounts := settings.accounts(os.environ):
        from mlflow.server import auth

        accounts.close_store(os.environ)
        accounts.close_traces()
        accounts.remember_experiments(os.environ)
        app, known, seldom = auth.create_app(), auth._authenticate_fastapi_request, accounts.SELDOM
        if function := os.environ.get("STACK_AUTHORIZATION"):
            known = importlib.import_module(function.split(":")[0]).register(app)
    else:
        from mlflow.server.fastapi_app import app

        shortcuts.without_accounts()
    shortcuts.take(app, os.environ, seldom)
    answers.take()
    if os.environ.get("MLFLOW_READ_REPLICA_BACKEND_STORE_URI"):
        app.add_middleware(importlib.import_module("stackops.backends.replica").Middleware)
    if os.environ.get("STORE_URL"):
        from stackops.stores import presigned

        presigned.register()
    # MLflow imports this when somebody first asks for a job, and holds a lock meanwhile that every import
    # needs: with another request at that moment, both wait for each other, and all others for them.
    importlib.import_module("mlflow.server.jobs.utils")
    failures.let_wait()
    app.add_exception_handler(Exception, failures.answer)
    build = app.build_middleware_stack
    app.build_middleware_stack = lambda: balance.between(failures.Answered(build()))
    flask_app.register_error_handler(500, failures.blame)
    flask_app.wsgi_app = WhiteNoise(
        flask_app.wsgi_app,
        root=flask_app.static_folder,
        prefix=_add_static_prefix("/static-files/"),
        max_age=FOUR_WEEKS,
        allow_all_origins=False,
    )
    if os.environ.get("MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE") != "true":
        app.add_middleware(screen.Screen, known=known)
    # Files on the server's own disk MLflow sends without a copy.
    if hasattr(settings.store(os.environ), "read"):
        app.router.routes[:0] = router.routes
    bridge.lay(app, flask_app)
    if logins := settings.logins(os.environ):
        logins.guard(app)
    if os.environ.get("STACK_FIGURES") == "on":
        importlib.import_module("stackops.counting").register(app)
    if os.environ.get("STACK_ACCESS_LOG") != "off":
        importlib.import_module("stackops.access").register(app)
    return app
