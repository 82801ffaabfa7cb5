"""Which requests read from a copy of the database, and what happens when it has not what is asked for."""

import asyncio
from contextlib import contextmanager

import pytest
from stackops.backends import replica


def ask(method: str, path: str, statuses: dict[bool, int]) -> tuple[list[bool], list[dict]]:
    """Return from where the application read, and what was sent; its status depends on where it reads."""
    read, sent = [], []

    async def app(scope, receive, send):
        read.append(from_copy := replica.FROM_COPY.get())
        assert (await receive())["body"] == b""
        await send({"type": "http.response.start", "status": statuses[from_copy]})
        await send({"type": "http.response.body", "body": b"from the copy" if from_copy else b"from the database"})

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(replica.Middleware(app)({"type": "http", "method": method, "path": path}, receive, send))
    return read, sent


@pytest.mark.parametrize(
    ("method", "path", "from_copy"),
    [
        ("GET", "/api/2.0/mlflow/runs/get", True),
        ("POST", "/api/2.0/mlflow/runs/search", True),
        ("POST", "/ajax-api/2.0/mlflow/experiments/search-datasets", True),
        ("POST", "/graphql", True),
        ("POST", "/api/2.0/mlflow/registered-models/get-latest-versions", True),
        ("POST", "/api/2.0/mlflow/runs/create", False),
        ("POST", "/api/2.0/mlflow/runs/log-metric", False),
        ("PATCH", "/api/2.0/mlflow/registered-models/update", False),
        ("DELETE", "/api/2.0/mlflow/registered-models/delete", False),
        ("PUT", "/api/2.0/mlflow-artifacts/artifacts/1/a", False),
    ],
)
def test_who_writes_reads_from_the_database(method: str, path: str, from_copy: bool) -> None:
    read, sent = ask(method, path, {True: 200, False: 200})
    assert read == [from_copy] and [message["type"] for message in sent] == [
        "http.response.start",
        "http.response.body",
    ]


@pytest.mark.parametrize("status", [200, 404])
def test_what_the_copy_has_not_is_asked_of_the_database(status: int) -> None:
    read, sent = ask("GET", "/api/2.0/mlflow/runs/get", {True: 404, False: status})
    assert read == [True, False]
    assert [message.get("status") or message["body"] for message in sent] == [status, b"from the database"]


def test_a_page_that_is_not_there_is_asked_for_once() -> None:
    read, sent = ask("GET", "/static-files/a.js", {True: 404, False: 200})
    assert read == [True] and sent[0]["status"] == 404


def test_sessions_of_writes_are_the_databases() -> None:
    """A read inside a request that writes uses the session of the database; MLflow marks writes itself."""

    def original(to_write, to_read, db_type):
        @contextmanager
        def session(read_only=True):
            yield (to_read if read_only else to_write), read_only

        return session

    session = replica.routing(original)("database", "copy", "postgresql")

    def opened(from_copy: bool, **how: bool) -> tuple[str, bool]:
        token = replica.FROM_COPY.set(from_copy)
        with session(**how) as found:
            replica.FROM_COPY.reset(token)
            return found

    assert opened(True) == ("copy", True)
    assert opened(False) == ("database", True)
    assert opened(True, read_only=False) == opened(False, read_only=False) == ("database", False)
