"""The screen in front of MLflow's application: whose pages may change something, and how big a request may be."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from stackops import screen
from starlette.types import Message, Receive, Scope, Send

OWN, STRANGE = "https://mlflow.example.com", "https://evil.example.net"
UPLOAD = "/api/2.0/mlflow-artifacts/artifacts/1/run/artifacts/model.bin"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the number of bytes that arrived."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


def ask(
    method: str = "POST",
    path: str = "/graphql",
    pieces: tuple[int, ...] = (2,),
    known: Callable[..., Any] | None = None,
    **headers: str,
) -> tuple[int, bytes, int]:
    """Send a request with a body of these pieces; return status, body, and how many pieces were read."""
    scope = {
        "type": "http", "method": method, "path": path, "query_string": b"",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    left, sent = list(pieces), []

    async def receive() -> Message:
        body = bytes(left.pop(0)) if left else b""
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(screen.Screen(echo, known)(scope, receive, send))
    return sent[0]["status"], sent[1]["body"], len(pieces) - len(left)


@pytest.fixture(autouse=True)
def origins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", OWN)


@pytest.mark.parametrize("path", ["/graphql", "/v1/traces", "/api/2.0/mlflow/runs/create", UPLOAD, "/x"])
@pytest.mark.parametrize("origin", [STRANGE, "null", OWN + ".evil.net", "http://mlflow.example.com"])
def test_other_peoples_pages_change_nothing(path: str, origin: str) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        status, _, read = ask(method, path, origin=origin)
        assert (status, read) == (403, 0)


@pytest.mark.parametrize("origin", [{}, {"origin": OWN}, {"origin": "http://localhost:5000"}])
def test_own_pages_and_clients_do(origin: dict[str, str]) -> None:
    assert ask(**origin) == (200, b"2", 1)


def test_looking_is_mlflows_affair() -> None:
    assert ask("GET", origin=STRANGE)[0] == 200, "the browser keeps the answer from the page"


def test_any_origin_where_the_owner_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", "*")
    assert ask(origin=STRANGE)[0] == 200


def test_bodies_arrive_whole() -> None:
    assert ask(pieces=(5, 0, 7)) == (200, b"12", 3)


def test_an_announced_giant_is_not_read() -> None:
    assert ask(content_length=str(10 << 30))[::2] == (413, 0)


def test_a_giant_that_was_not_announced_is_read_up_to_the_limit() -> None:
    status, _, read = ask(pieces=(40 << 20,) * 10)
    assert (status, read) == (413, 3)


def test_artifacts_may_be_of_any_size() -> None:
    assert ask("PUT", UPLOAD, pieces=(60 << 20, 60 << 20), content_length=str(120 << 20))[0] == 200


@pytest.mark.parametrize("announced", [True, False])
def test_a_stranger_may_send_less(announced: bool) -> None:
    asked = []

    def known(request: Any) -> bool:
        asked.append(request.headers.get("authorization"))
        return request.headers.get("authorization") == "right"

    pieces = (700_000,) * 3
    more = {"content_length": "2100000"} if announced else {}
    assert ask(pieces=pieces, known=known, authorization="wrong", **more)[::2] == (413, 0 if announced else 2)
    assert ask(pieces=pieces, known=known, authorization="right", **more) == (200, b"2100000", 3)
    assert asked == ["wrong", "right"], "a login is checked once, and only for big bodies"
    assert ask(pieces=(1000,), known=known)[0] == 200 and len(asked) == 2


@pytest.mark.parametrize(("path", "status"), [("/gateway/mlflow/v1/chat/completions", 400), ("/graphql", 200)])
def test_the_gateway_takes_json_objects_only(path: str, status: int) -> None:
    assert ask(path=path, pieces=(3,))[0] == status, "three zero bytes are no JSON"
