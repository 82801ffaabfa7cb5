"""Stands in front of MLflow's own logins: limits failed ones, and lets changes take effect at once.

MLflow asks its function `_authenticate_cached` for every login, in Flask and in FastAPI. Here it is asked
through `Guard.authenticate`, which knows the request's address from the middleware.
"""

import json
import os
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from weakref import WeakValueDictionary

from cachetools import TTLCache

from stackops import accounts
from stackops.limiter import Limiter, Proven


@dataclass
class Request:
    """Where a request comes from, for how many seconds its login is not checked, and who has signed in."""

    address: str
    wait: float = 0.0
    user: str = ""


class Gate:
    """A lock that only those keep alive who use it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


KNOWN = 10_000
"""Users that are kept in mind."""

REQUEST: ContextVar[Request | None] = ContextVar("request", default=None)


class Guard:
    """Checks logins with MLflow's own function, called by many threads."""

    def __init__(self, auth: ModuleType, marker: Path, limiter: Limiter, proven: Proven):
        self.auth, self.marker, self.limiter, self.proven = auth, marker, limiter, proven
        self.original, self.original_forget = auth._authenticate_cached, auth._invalidate_user_auth_cache
        self.original_user = auth.store.get_user
        self.known = TTLCache(maxsize=KNOWN, ttl=auth.auth_config.auth_cache_ttl_seconds)
        self.changes = 0
        self.lock = threading.Lock()
        self.gates: WeakValueDictionary[object, Gate] = WeakValueDictionary()
        self.state: tuple[int, ...] | None = None

    def look(self) -> None:
        """Forget every checked login if users have changed since the last look."""
        try:
            found = self.marker.stat()
            state = found.st_ino, found.st_mtime_ns
        except FileNotFoundError:
            state = ()
        with self.lock:
            if state == self.state:
                return
            self.state = state
            self.proven.clear()
            self.known.clear()
            self.changes += 1
        with self.auth._USER_AUTH_CACHE_LOCK:
            self.auth._USER_AUTH_CACHE.clear()

    def authenticate(self, name: str, password: str):
        """Return MLflow's user, or None if the login is wrong or is not checked now."""
        if user := self.check(name, password):
            signed_in(name)
        return user

    def check(self, name: str, password: str):
        """Return the same, and leave the log alone."""
        self.look()
        key = self.auth._auth_cache_key(name, password)
        with self.auth._USER_AUTH_CACHE_LOCK:
            if user := self.auth._USER_AUTH_CACHE.get(key):
                return user
        if (request := REQUEST.get()) is None:
            return self.original(name, password)
        # A check takes 0.3 s of CPU: of equal ones at once, the others wait for the first.
        with self.lock:
            gate = self.gates.setdefault(key, Gate())
        with gate.lock:
            with self.lock:
                state, proven = self.state, key in self.proven
                if not proven and (wait := self.limiter.wait(request.address, name)):
                    request.wait = wait
                    return None
                # Counted until found right: of many tries at once, each counts before it is checked.
                counted = None if proven else self.limiter.failed(request.address, name)
            wrong = False
            try:
                user = self.original(name, password)
                wrong = user is None
            finally:  # a database that does not answer is nobody's failure
                if counted and not wrong:
                    with self.lock:
                        self.limiter.forgive(counted)
            if user:
                with self.lock:
                    self.limiter.passed(request.address, name)
                    if state == self.state:
                        self.proven.add(key)
            return user

    def user(self, name: str):
        """Return what MLflow knows of a user: it asks at each request whether they are an administrator.

        It is kept for as long as MLflow keeps a login, and forgotten with it.
        """
        self.look()
        with self.lock:
            if user := self.known.get(name):
                return user
            changes = self.changes
        user = self.original_user(name)
        with self.lock:
            if changes == self.changes:
                self.known[name] = user
        return user

    def forget(self, name: str) -> None:
        """Forget a user's logins: here as MLflow does, and in the other processes."""
        self.original_forget(name)
        with self.lock:
            self.known.pop(name, None)
            self.changes += 1
        accounts.announce(self.marker)


def signed_in(name: str) -> None:
    """Note who sends the request that is answered now, for the access log."""
    if request := REQUEST.get():
        request.user = "".join(letter if letter.isprintable() else "?" for letter in name)


class Middleware:
    """Tells the guard where a request comes from, the client when to try again, and the access log who it was
    (a proxy by the header X-Auth-User, which it keeps to itself)."""

    def __init__(self, app: Callable[..., Awaitable[None]], header: bytes):
        self.app, self.header = app, header

    async def __call__(self, scope, receive, send) -> None:
        """Pass the request on; its answer becomes 429 if its login was not checked."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = dict(scope["headers"]).get(self.header, b"").decode("latin-1") if self.header else ""
        request = Request(given or (scope.get("client") or ("",))[0])

        async def answer(message) -> None:
            if not request.wait:
                if message["type"] == "http.response.start" and request.user:
                    scope["stack.user"] = request.user
                    if self.header:
                        noted = (b"x-auth-user", request.user.encode())
                        message = message | {"headers": [*message.get("headers", ()), noted]}
                await send(message)
            elif message["type"] == "http.response.start":
                await refuse(send, int(request.wait) + 1)

        REQUEST.set(request)
        scope["stack.user"] = ""
        await self.app(scope, receive, answer)


async def refuse(send, seconds: int) -> None:
    """Answer 429, in the form of MLflow's errors."""
    text = f"Too many failed logins from your address: try again in {seconds} s"
    body = json.dumps({"error_code": "REQUEST_LIMIT_EXCEEDED", "message": text}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", str(seconds).encode()),
    ]
    await send({"type": "http.response.start", "status": 429, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def users(env: Mapping[str, str]) -> accounts.Users:
    """Return the users whose logins these are."""
    return accounts.users(env)


def guard(app, env: Mapping[str, str] = os.environ) -> None:
    """Put the guard in front of MLflow's logins. ADDRESS_HEADER names the header in which a proxy in front
    puts the client's address; without a proxy nobody is believed who sends one."""
    from mlflow.server import auth

    made = Guard(auth, accounts.marker(env), Limiter(), Proven())
    auth._authenticate_cached, auth._invalidate_user_auth_cache = made.authenticate, made.forget
    auth.store.get_user = made.user
    app.add_middleware(Middleware, header=env.get("ADDRESS_HEADER", "").lower().encode())
