"""The server's own access log."""

import asyncio
import json

import pytest
from stackops import access, guard
from stackops.limiter import Limiter, Proven


def scope(path="/api/x", address="172.18.0.1", **headers):
    return {
        "type": "http",
        "method": "PUT",
        "path": path,
        "raw_path": path.replace(" ", "%20").encode(),
        "query_string": b"token=secret",
        "client": (address, 1),
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }


def ask(app, given, *bodies):
    """Send a request through the log; return the lines."""
    lines, messages = [], [{"type": "http.request", "body": body} for body in bodies or (b"",)]

    async def receive():
        return messages.pop(0)

    async def send(message):
        pass

    asyncio.run(access.Log(app, write=lines.append)(given, receive, send))
    return [json.loads(line) for line in lines]


async def answers(scope, receive, send):
    await receive()
    await receive()
    await send({"type": "http.response.start", "status": 201, "headers": []})
    await send({"type": "http.response.body", "body": b"12345", "more_body": True})
    await send({"type": "http.response.body", "body": b"678"})


def test_one_line_for_each_request():
    (line,) = ask(answers, scope("/api/a b", authorization="Basic c2VjcmV0"), b"abc", b"de")
    assert line.pop("time").endswith("+00:00") and 0 <= line.pop("seconds") < 5
    assert line == {
        "method": "PUT", "path": "/api/a%20b", "status": 201, "bytes_in": 5, "bytes_out": 8, "address": "172.18.0.1"
    }  # fmt: skip


def test_a_line_is_one_line_and_short():
    given = scope()
    given["raw_path"] = b"/x\n\x1b[2J" + b"y" * 9000
    lines = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 404, "headers": []})

    asyncio.run(access.Log(app, write=lines.append)(given, None, lambda message: asyncio.sleep(0)))
    assert len(lines) == 1 and lines[0].count(b"\n") == 1 and b"\x1b" not in lines[0] and len(lines[0]) < 4096


def test_an_answer_that_never_began():
    async def fails(scope, receive, send):
        raise ValueError("the app is broken")

    async def goes(scope, receive, send):
        raise asyncio.CancelledError

    for app, error, status in ((fails, ValueError, 500), (goes, asyncio.CancelledError, 499)):
        lines = []
        with pytest.raises(error):
            asyncio.run(access.Log(app, write=lines.append)(scope(), None, None))
        assert json.loads(lines[0])["status"] == status


def test_the_health_check_is_not_shown():
    assert ask(answers, scope(address="127.0.0.1", user_agent="stackops-ready"), b"", b"") == []
    assert len(ask(answers, scope(address="172.18.0.9", user_agent="stackops-ready"), b"", b"")) == 1
    assert len(ask(answers, scope(address="127.0.0.1", user_agent="curl"), b"", b"")) == 1


class Auth:
    """MLflow's side: one user, ann."""

    import threading
    from types import SimpleNamespace

    auth_config, store = SimpleNamespace(auth_cache_ttl_seconds=60), SimpleNamespace(get_user=None)
    _USER_AUTH_CACHE_LOCK, _USER_AUTH_CACHE = threading.Lock(), {}
    _invalidate_user_auth_cache = staticmethod(lambda name: None)
    _auth_cache_key = staticmethod(lambda name, password: (name, password))
    _authenticate_cached = staticmethod(lambda name, password: "user" if password == "right" else None)


@pytest.mark.parametrize(("password", "user"), [("right", "a?n\u00e9"), ("wrong", "")])
def test_who_signed_in_is_named_and_nobody_else(tmp_path, password, user):
    """Also to the proxy, in a header that a name cannot break out of."""
    guarding = guard.Guard(Auth, tmp_path / "marker", Limiter(), Proven())

    async def app(scope, receive, send):
        status = 200 if await asyncio.to_thread(guarding.authenticate, "a\nn\u00e9", password) else 401
        await send({"type": "http.response.start", "status": status, "headers": [(b"x", b"y")]})

    (line,) = ask(guard.Middleware(app, b""), scope())
    assert (line["user"], line["status"]) == (user, 200 if user else 401)

    told = []

    async def send(message):
        told.append(message)

    asyncio.run(guard.Middleware(app, b"x-real-ip")(scope(), None, send))
    headers = [(b"x", b"y")] + ([(b"x-auth-user", user.encode())] if user else [])
    assert told[0]["headers"] == headers
