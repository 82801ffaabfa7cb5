"""From ASGI to Flask and back: the answers are those of MLflow's own bridge, and come when they are due."""

import asyncio
import io
import threading
from collections.abc import Callable, Iterator

import pytest
from flask import Flask, Response, request, send_file
from mlflow.server import fastapi_app as theirs
from stackops import bridge
from starlette.types import Message

Send = Callable[[Message], None]


def application() -> Flask:
    """Return an application with all kinds of answers."""
    app = Flask("test")
    app.closed = []

    @app.route("/one", methods=["GET", "POST"])
    def one() -> Response:
        seen = [request.method, request.query_string.decode(), request.get_data(as_text=True), request.headers["X-Odd"]]
        answer = Response("|".join(seen) + " ü", headers=[("X-Twice", "1"), ("X-Twice", "2")])
        answer.call_on_close(lambda: app.closed.append("one"))
        return answer

    @app.route("/empty")
    def empty() -> Response:
        return Response(status=204)

    @app.route("/many")
    def many() -> Response:
        answer = Response((f"piece {number}\n" for number in range(5)), 201)
        answer.call_on_close(lambda: app.closed.append("many"))
        return answer

    @app.route("/announced")
    def announced() -> Response:
        return Response(iter(["abc", "def"]), headers={"Content-Length": "6"})

    @app.route("/file")
    def file() -> Response:
        return send_file(io.BytesIO(bytes(range(256)) * 4096), "application/octet-stream")

    @app.route("/fails")
    def fails() -> Response:
        raise ValueError("on purpose")

    @app.route("/fails-late")
    def fails_late() -> Response:
        def pieces() -> Iterator[str]:
            yield "begun"
            raise ValueError("on purpose")

        answer = Response(pieces())
        answer.call_on_close(lambda: app.closed.append("late"))
        return answer

    return app


def ask(app, path: str, method: str = "GET", body=(b"",), before: Send | None = None) -> list[Message]:
    """Send a request, its body in pieces; return what is sent. `before` is called with each message first."""
    sent: list[Message] = []
    waiting = list(body)

    async def receive() -> Message:
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message: Message) -> None:
        if before:
            before(message)
        sent.append(message)

    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"a=%20b",
        "root_path": "", "http_version": "1.1", "scheme": "http", "server": ("localhost", 80),
        "client": ("127.0.0.1", 1),
        "headers": [(b"host", b"localhost"), (b"x-odd", b"\xfc"), (b"content-length", b"%d" % sum(map(len, body)))],
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return sent


def answer(sent: list[Message]) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return status, headers and body."""
    assert [message["type"] for message in sent] == ["http.response.start", *["http.response.body"] * (len(sent) - 1)]
    assert not sent[-1].get("more_body") and all(message["more_body"] for message in sent[1:-1])
    return sent[0]["status"], sent[0]["headers"], b"".join(message["body"] for message in sent[1:])


@pytest.mark.parametrize("path", ["/one", "/empty", "/many", "/announced", "/file", "/fails", "/nothing"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
def test_answers_are_those_of_mlflows_bridge(path: str, method: str) -> None:
    app = application()
    body = (b"first ", b"second") if method == "POST" else (b"",)
    both = bridge.Bridge(app, app), theirs._EfficientWSGIMiddleware(app)
    ours, mlflows = (answer(ask(made, path, method, body)) for made in both)
    assert ours == mlflows


def test_one_piece_is_one_message() -> None:
    """And what the application wants to do afterwards is done before it is sent."""
    app = application()
    sent = ask(bridge.Bridge(app, app), "/one", before=lambda message: app.closed.append(message["type"]))
    assert app.closed == ["one", "http.response.start", "http.response.body"] and len(sent) == 2


def test_pieces_wait_for_the_client() -> None:
    """The application makes the next piece when the one before has gone, and a slow client fills no memory."""
    app, order = application(), []

    @app.route("/slow")
    def slow() -> Response:
        def pieces() -> Iterator[str]:
            for number in range(3):
                order.append(f"made {number}")
                yield str(number)

        return Response(pieces())

    def before(message: Message) -> None:
        threading.Event().wait(0.02)
        order.append(f"sent {message.get('body', b'').decode()}")

    ask(bridge.Bridge(app, app), "/slow", before=before)
    assert order == ["made 0", "sent ", "sent 0", "made 1", "sent 1", "made 2", "sent 2", "sent "]


def test_big_files_in_big_pieces() -> None:
    app = application()
    sent = ask(bridge.Bridge(app, app), "/file")
    assert [len(message["body"]) for message in sent[1:]] == [bridge.PIECE] * 4 + [0]


def test_a_failure_in_the_middle_is_no_whole_answer() -> None:
    """The server then closes the connection, and the client sees that something is missing."""
    app, sent = application(), []
    with pytest.raises(ValueError, match="on purpose"):
        ask(bridge.Bridge(app, app), "/fails-late", before=sent.append)
    assert [message.get("more_body") for message in sent] == [None, True] and app.closed == ["late"]


def test_what_is_no_http_goes_to_mlflows() -> None:
    seen = []

    async def other(scope, receive, send) -> None:
        seen.append(scope["type"])

    asyncio.run(bridge.Bridge(application(), other)({"type": "websocket"}, None, None))
    assert seen == ["websocket"]


def test_where_it_lies() -> None:
    """First for paths that only Flask has; for all others MLflow's routes come first, and Flask last, as before."""
    app, flask_app = theirs.create_fastapi_app(application()), application()

    @flask_app.route("/version/<name>")
    def version(name: str) -> str:
        return name

    @flask_app.route("/v1/traces", methods=["GET", "POST"])
    def both() -> str:
        return "Flask"

    length = len(app.router.routes)
    bridge.lay(app, flask_app)
    first, last = app.router.routes[0], app.router.routes[-1]
    assert first.app is last.app and isinstance(last.app, bridge.Bridge) and len(app.router.routes) == length + 1
    assert {"/one", "/many"} <= first.paths and not {"/v1/traces", "/version/<name>"} & first.paths
    assert answer(ask(app, "/version/7"))[2] == b"7"
    assert b"Flask" not in answer(ask(app, "/v1/traces", "POST"))[2]
    with pytest.raises(LookupError):
        bridge.lay(app, flask_app)
