"""Answers the reverse proxy, which asks before each request whether its login is right.

The proxy asks `GET /stackops/login` with the request's Authorization and, in X-Real-IP, the address it came
from. Nobody else gets an answer to this path: the proxy says 404.

    204  the login is right; X-Auth-User is the user's name
    401  there is no login, or a wrong one
    403  too many wrong ones came from that address; Retry-After says for how many seconds none is checked
"""

import asyncio
import base64
import binascii
import hmac
import logging
import os
import secrets as tokens
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from stackops import htpasswd, settings
from stackops.limiter import Limiter, Proven

PATH = "/stackops/login"
LONGEST = 2048
"""Bytes of a header: checking a hash takes the longer, the longer the password is."""

log = logging.getLogger("uvicorn.error")


@dataclass(frozen=True)
class Answer:
    """What the proxy is told."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...] = ()


def credentials(header: bytes) -> tuple[bytes, bytes] | None:
    """Return name and password of an Authorization header, or None if it is not one of the scheme Basic."""
    scheme, _, value = header.partition(b" ")
    if scheme.lower() != b"basic" or len(header) > LONGEST:
        return None
    try:
        name, colon, password = base64.b64decode(value.strip(), validate=True).partition(b":")
    except binascii.Error:
        return None
    return (name, password) if colon and name else None


class Login:
    """Checks logins against the list of users, as it is now."""

    def __init__(self, path: Path, realm: str, clock: Callable[[], float] = time.monotonic):
        self.path = path
        self.limiter, self.proven = Limiter(clock), Proven(clock=clock)
        self.challenge = Answer(401, ((b"www-authenticate", f'Basic realm="{realm}"'.encode()),))
        self.key = tokens.token_bytes(32)
        self.state: tuple[int, ...] | None = None
        self.users: dict[str, str] = {}
        self.gates: WeakValueDictionary[object, asyncio.Lock] = WeakValueDictionary()

    def look(self) -> None:
        """Read the list again if it has changed, and forget every login that was right. No list: no users."""
        try:
            state = htpasswd.state(self.path)
            if state == self.state:
                return
            users = htpasswd.parse(htpasswd.read(self.path))
        except (OSError, UnicodeDecodeError) as error:
            state, users = (), {}
            if self.state != state:
                log.error("secrets/htpasswd cannot be read (%s): nobody gets in", type(error).__name__)
        else:
            if htpasswd.replaced(self.path):
                log.warning("secrets/htpasswd is another file now, which is not seen here: run make restart")
        self.state, self.users = state, users
        self.proven.clear()

    async def answer(self, header: bytes, address: str) -> Answer:
        """Return what the proxy is told about a request with this Authorization from this address."""
        if not (found := credentials(header)):
            return self.challenge
        name, password = found
        digest = hmac.digest(self.key, name + b":" + password, "sha256")
        welcome = Answer(204, ((b"x-auth-user", name),))
        self.look()
        if digest in self.proven:
            return welcome
        # One after the other: of many tries at once, each must count before the next is checked.
        gate = self.gates.setdefault(self.limiter.bucket(address, name), asyncio.Lock())
        async with gate:
            self.look()
            if digest in self.proven:
                return welcome
            if wait := self.limiter.wait(address, name):
                return Answer(403, ((b"retry-after", str(int(wait) + 1).encode()),))
            state, kept = self.state, self.users.get(name.decode(errors="replace"))
            right = await asyncio.to_thread(htpasswd.verify, password, kept or htpasswd.nobody())
            if not (right and kept):
                self.limiter.failed(address, name)
                return self.challenge
            self.limiter.passed(address, name)
            if state == self.state:
                self.proven.add(digest)
            return welcome


class Middleware:
    """In front of the application, so that nothing else judges what the proxy asks."""

    def __init__(self, app: Callable[..., Awaitable[None]], login: Login):
        self.app, self.login = app, login

    async def __call__(self, scope, receive, send) -> None:
        """Answer the proxy, or pass the request on."""
        if scope["type"] != "http" or scope["path"] != PATH:
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        address = headers.get(b"x-real-ip", b"").decode("latin-1")
        answer = await self.login.answer(headers.get(b"authorization", b""), address)
        length = [] if answer.status == 204 else [(b"content-length", b"0")]
        await send(
            {"type": "http.response.start", "status": answer.status, "headers": [*answer.headers, *length]}
        )
        await send({"type": "http.response.body", "body": b""})


def users(env: Mapping[str, str]) -> htpasswd.Users:
    """Return the users whose logins these are."""
    return htpasswd.users(env)


def guard(app, env: Mapping[str, str] = os.environ) -> None:
    """Put the answers to the proxy in front of the application."""
    htpasswd.nobody()
    path = settings.secrets(env).path(htpasswd.SECRET)
    app.add_middleware(Middleware, login=Login(path, env.get("LOGIN_REALM") or "MLflow"))
