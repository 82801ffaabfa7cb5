"""Asks a running server whether it can work: through its API to the database and to the artifact store.

MLflow's /health answers 200 while the database is down. Silent and exit code 0 if all is well; otherwise
one line that names the part.
"""

import argparse
import base64
import json
import os
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from stackops import settings
from stackops.errors import StackError, one_line

AGENT = "stackops-ready"
HELP = "is the server ready: API, database, artifact store (the health check)"
TRY = 8.0
NOTES = "ready-*.json"
FORGOTTEN = 3600
"""Seconds after which what a server has noted goes: it is not there any more."""
# The database is asked for an experiment that is not there, so that no row decides what the answer is: MLflow
# fails over one that it has not written itself, and goes on serving the others.
PARTS = (
    ("database", "/api/2.0/mlflow/experiments/search?max_results=1&filter=name%3D%27.stackops-probe%27"),
    ("artifact store", "/api/2.0/mlflow-artifacts/artifacts?path=.stackops-probe/ready"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument(
        "--wait", type=float, default=0, metavar="SECONDS", help="keep asking for that long (default: once)"
    )
    parser.add_argument("--note", action="store_true", help="write down what came out, for those who watch")
    parser.add_argument("--url", default=None, help="the server (default: http://127.0.0.1:$MLFLOW_PORT)")


def request(url: str, password: str) -> urllib.request.Request:
    """Return the GET request, signed in as admin if there is a password."""
    made = urllib.request.Request(url, headers={"User-Agent": AGENT})
    if password:
        token = base64.b64encode(f"admin:{password}".encode()).decode()
        made.add_header("Authorization", f"Basic {token}")
    return made


def ask(part: str, made: urllib.request.Request, seconds: float) -> bytes:
    """Send one request and return the answer. Raises StackError that names the part unless it is a 200."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(made, timeout=max(0.1, seconds)) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        raise StackError(f"not ready: {part}: HTTP {error.code}{_detail(error)}") from None
    except (TimeoutError, urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise StackError(f"not ready: {part}: no answer in time") from None
        raise StackError(f"not ready: the server does not answer ({one_line(reason, 120)})") from None


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        message = json.loads(error.read(20_000)).get("message", "")
    except (ValueError, AttributeError, OSError):
        return ""
    return f" ({one_line(message, 160)})" if message else ""


def check(base: str, password: str, seconds: float) -> dict[str, float]:
    """Ask both parts within `seconds`, and return how long each took. Raises StackError for the first that
    is not ready."""
    until, took = time.monotonic() + seconds, {}
    for part, path in PARTS:
        began = time.monotonic()
        ask(part, request(base.rstrip("/") + path, password), until - began)
        took[part] = time.monotonic() - began
    return took


def own(scope: Mapping[str, Any]) -> bool:
    """Whether an HTTP request, as ASGI has it, is the container's own health check."""
    if (scope.get("client") or ("",))[0] != "127.0.0.1":
        return False
    return (b"user-agent", AGENT.encode()) in scope["headers"]


def folder() -> Path:
    """Return where the last result of every server is."""
    return Path(os.environ.get("TMPDIR") or "/var/tmp")


def notes() -> list[Path]:
    """Return the files with the last result of each server."""
    return sorted(folder().glob(NOTES))


def note(seconds: Mapping[str, float], error: str = "") -> None:
    """Write down what came out. On a full disk nothing is written, and the health is what it is."""
    content = {"time": time.time(), "seconds": seconds, "error": error}
    own = folder() / NOTES.replace("*", socket.gethostname())
    part = own.with_name(f".{own.name}.{os.getpid()}")
    with suppress(OSError):
        try:
            part.write_text(json.dumps(content), encoding="utf-8")
            part.replace(own)
        finally:
            part.unlink(missing_ok=True)
        for other in notes():
            if time.time() - other.stat().st_mtime > FORGOTTEN:
                other.unlink(missing_ok=True)


def run(args: argparse.Namespace) -> None:
    """Ask once, or until it is ready or the time is over."""
    env = settings.present(os.environ)
    url = args.url or f"http://127.0.0.1:{settings.port(env)}"
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise StackError(f"{url!r} is not an http or https address")
    password = settings.secrets(env).need("admin_password") if env.get("STACK_AUTH") == "mlflow" else ""
    until = time.monotonic() + args.wait
    while True:
        try:
            took = check(url, password, TRY)
            return note(took) if args.note else None
        except StackError as error:
            if args.note:
                note({}, str(error))
            if time.monotonic() + 1 > until:
                raise
            time.sleep(1)
