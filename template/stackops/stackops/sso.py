"""Single sign-on: MLflow believes nginx, which has asked oauth2-proxy, which has asked the provider.

nginx names the person and proves with a key that it is nginx. Whoever has no browser signs in with a user and
a token of this stack (token.py), or shows nginx a token of the provider. People become MLflow users when they
come for the first time. The group OIDC_ADMIN_GROUP makes administrators, and the group `x` gives MLflow's
role `group:x`, where there is one.

MLflow calls `authenticate` (its setting authorization_function) for every request, some more than once.
"""

import contextlib
import functools
import hmac
import html
import os
import secrets as random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from mlflow.exceptions import MlflowException

from stackops import accounts, guard, settings, token
from stackops.errors import StackError

KEY, USER, GROUPS = "X-Stack-Key", "X-Stack-User", "X-Stack-Groups"
ROLE = "group:"
FRESH = 60
"""Seconds after which the database is asked again what it knows of a person."""
DAYS = 30
"""How long a token lives that somebody makes on the page."""

router = APIRouter()


@dataclass(frozen=True)
class Identity:
    """Who somebody is, as the provider says."""

    user: str
    groups: frozenset[str]


def identity(headers: Mapping[str, str], key: str) -> Identity | None:
    """Return whom nginx names, or None if it names nobody or was not nginx.

    A name without an @ (of a program, or of a provider that knows no mail addresses) gets the prefix `oidc:`,
    so that nobody at the provider can be this stack's `admin`.
    """
    name = headers.get(USER, "").strip().lower()
    if not name or not hmac.compare_digest(headers.get(KEY, "").encode(), key.encode()):
        return None
    groups = (group.strip() for group in headers.get(GROUPS, "").split(","))
    return Identity(name if "@" in name else f"oidc:{name}", frozenset(group for group in groups if group))


def role_changes(groups: frozenset[str], has: set[str], known: set[str]) -> tuple[set[str], set[str]]:
    """Return which roles a person gets and which they lose. Roles that are no group's stay as they are."""
    wanted = {ROLE + group for group in groups} & known
    return wanted - has, {role for role in has if role.startswith(ROLE)} - wanted


@functools.cache
def identity_key() -> str:
    """Return the key that nginx has too. Raises StackError."""
    return settings.secrets(os.environ).need("identity_key")


_seen: dict[Identity, float] = {}


def admit(who: Identity) -> None:
    """Make the person a user of MLflow, with the rights that follow from the groups."""
    now = time.monotonic()
    if now < _seen.get(who, 0):
        return

    from mlflow.server.auth import _invalidate_user_auth_cache, store

    admin = os.environ.get("OIDC_ADMIN_GROUP") in who.groups
    if not store.has_user(who.user):
        with contextlib.suppress(MlflowException):  # another worker was faster
            store.create_user(who.user, random.token_hex(32), is_admin=admin)
    user = store.get_user(who.user)
    if user.is_admin != admin:
        store.update_user(who.user, is_admin=admin)
        _invalidate_user_auth_cache(who.user)
    known = {role.name: role.id for role in store.list_roles() if role.name.startswith(ROLE)}
    has = {role.name: role.id for role in store.list_user_roles(user.id)}
    gains, losses = role_changes(who.groups, set(has), set(known))
    with contextlib.suppress(MlflowException):  # as above
        for name in gains:
            store.assign_role_to_user(user.id, known[name])
        for name in losses:
            store.unassign_role_from_user(user.id, has[name])
    for old in [old for old, until in _seen.items() if until < now]:
        _seen.pop(old, None)
    _seen[who] = now + FRESH


def authenticate():
    """Return who sends the Flask request, or the answer 401."""
    from flask import request
    from mlflow.server import auth
    from werkzeug.datastructures import Authorization

    if who := identity(request.headers, identity_key()):
        admit(who)
        guard.signed_in(who.user)
        return Authorization("basic", {"username": who.user, "password": ""})
    given = request.authorization
    if given is None or given.type != "basic" or not given.username or not given.password:
        return auth.make_basic_auth_response()
    # A password that somebody gave themselves by MLflow's API would outlive their time at the provider.
    if given.username != accounts.ADMIN and not token.is_valid(
        token.key(os.environ), given.username, given.password, time.time()
    ):
        return auth.make_basic_auth_response()
    return auth.authenticate_request_basic_auth()


PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>Token</title>
<style>body {{ font: 16px/1.5 sans-serif; max-width: 46rem; margin: 3rem auto; padding: 0 1rem }}
pre {{ background: #eee; padding: 1rem; overflow-x: auto }}</style>
<h1>Token for programs</h1>
<p>You are signed in as <b>{user}</b>{role}.</p>
{body}
<form method="post">
<p><button name="action" value="make">Make a token for {days} days</button>
<button name="action" value="revoke">Revoke my token</button></p>
</form>
<p>You have one token at a time: a new one replaces the one before.</p>
<p><a href="../">Back to MLflow</a> · <a href="sign-out">Sign out</a></p>
</html>
"""
MADE = """<p>Keep it now, it is not shown again:</p>
<pre>export MLFLOW_TRACKING_USERNAME={user}
export MLFLOW_TRACKING_PASSWORD={token}</pre>"""
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def page(who: Identity, body: str = "") -> Response:
    """Return the page of a signed-in person."""
    role = ", an administrator" if os.environ.get("OIDC_ADMIN_GROUP") in who.groups else ""
    return HTMLResponse(
        PAGE.format(user=html.escape(who.user), role=role, body=body, days=DAYS), headers=HEADERS
    )


def refused() -> Response:
    """Return the answer to whom nginx does not name."""
    text = "This page is for people who signed in at the provider."
    return PlainTextResponse(text, HTTPStatus.FORBIDDEN, HEADERS)


@router.get("/stackops/token")
def show(request: Request) -> Response:
    """Answer with the page."""
    who = identity(request.headers, identity_key())
    return page(who) if who else refused()


@router.post("/stackops/token")
async def change(request: Request) -> Response:
    """Make or revoke a token, if this page itself asks for it."""
    who = identity(request.headers, identity_key())
    if not who:
        return refused()
    if urlsplit(request.headers.get("Origin", "")).netloc != request.headers.get("Host"):
        return PlainTextResponse("Another site asked for this.", HTTPStatus.FORBIDDEN, HEADERS)
    action = parse_qs((await request.body()).decode("ascii", "replace")).get("action")
    admit(who)
    if action == ["make"]:
        made = token.issue(os.environ, who.user, DAYS)
        return page(who, MADE.format(user=html.escape(who.user), token=made))
    if action == ["revoke"]:
        token.revoke(os.environ, who.user)
        return page(who, "<p>Your token is revoked.</p>")
    return PlainTextResponse("The form has no such action.", HTTPStatus.BAD_REQUEST, HEADERS)


def known(request: Request):
    """Return the user who sends the request, or None."""
    from mlflow.server import auth

    who = auth._authenticate_custom_for_fastapi(request)
    return None if isinstance(who, Response) else who


def register(app: FastAPI) -> Callable[[Request], Any]:
    """Add the page, and return the function that tells who sends a request.

    Raises StackError if the key is missing: then nobody could sign in.
    """
    if len(identity_key()) < 32:
        raise StackError(
            "the secret identity_key is too short; delete secrets/identity_key and run make init"
        )
    app.router.routes[:0] = router.routes
    return known
