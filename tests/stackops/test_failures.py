"""What clients are told when the artifact store fails."""

import asyncio
import errno
import http.client
import json
import threading
import time
from types import SimpleNamespace

import pytest
from stackops import failures

ENV = {"STACK_STORE": "s3", "ARTIFACT_URI": "s3://b"}
LOCAL = {"STACK_STORE": "local", "ARTIFACT_URI": "/data/artifacts"}


def test_a_failure_that_lasts_is_told_at_once():
    """The client tries again at 503, so a restart of the store costs it nothing; at 507 it gives up."""
    trouble = failures.Trouble()
    seen = [failures.verdict(ValueError("x"), LOCAL, trouble, now)[0] for now in (100, 110, 129, 131, 180)]
    assert seen == [503, 503, 503, 507, 507]
    assert failures.verdict(ValueError("x"), LOCAL, trouble, 180 + 61)[0] == 503, "the trouble was over"


def test_a_store_that_nobody_reaches_may_come_back():
    exceptions = pytest.importorskip("botocore.exceptions")
    error = exceptions.EndpointConnectionError(endpoint_url="http://object-store:8333", error="refused")
    trouble = failures.Trouble()
    seen = [failures.verdict(error, ENV, trouble, now)[0] for now in (100, 110, 129, 131, 180)]
    assert seen == [503] * 5


def test_a_full_disk_needs_no_patience():
    error = OSError(errno.ENOSPC, "No space left on device")
    status, text = failures.verdict(error, LOCAL, failures.Trouble(), 0)
    assert status == 507 and text == (
        "artifact store /data/artifacts: No space left on device; make room, or enlarge its disk"
    )


def test_the_store_explains():
    exceptions = pytest.importorskip("botocore.exceptions")
    error = exceptions.ClientError({"Error": {"Code": "InternalError", "Message": "m"}}, "PutObject")
    status, text = failures.verdict(error, ENV, failures.Trouble(), 0)
    assert status == 503 and text.startswith("artifact store s3://b: it failed (InternalError): its disk may be full")


@pytest.mark.parametrize(("path", "status"), [("/api/2.0/mlflow-artifacts/artifacts/x", 507), ("/v1/traces", 500)])
def test_only_artifacts_are_explained(path, status, monkeypatch):
    pytest.importorskip("starlette")
    for name, value in LOCAL.items():
        monkeypatch.setenv(name, value)
    request = SimpleNamespace(url=SimpleNamespace(path=path))
    found = asyncio.run(failures.answer(request, OSError(errno.ENOSPC, "No space left on device")))
    assert found.status_code == status
    if status == 507:
        assert "make room" in json.loads(found.body)["message"]
    else:
        assert found.body == b"Internal Server Error"


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"[]", 400), (b"\xff", 400), (b"[" * 100_000, 400), (b'{"a": 1}', 500), (b"", 500)],
)
def test_a_body_that_is_no_json_object_is_the_senders_fault(body, status):
    from flask import Flask

    app = Flask("test")
    app.register_error_handler(500, failures.blame)

    @app.post("/api")
    def api():
        raise TypeError("MLflow has stumbled")

    assert app.test_client().post("/api", data=body, content_type="application/json").status_code == status


def refusal(status: int):
    exceptions = pytest.importorskip("botocore.exceptions")
    known = {"Error": {"Code": "400", "Message": "Bad Request"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return exceptions.ClientError(known, "GetObject")


@pytest.mark.parametrize(
    ("name", "status", "expected"),
    [
        ("..%5c..%5cetc%5cpasswd", 400, True),
        ("..%255cetc", 400, True),
        ("a//b", 400, True),
        ("a/%2e%2e/b", 400, True),
        ("x%00", 400, True),
        ("plain/model..v1.bin", 400, False),
        ("a//b", 403, False),
        ("a//b", 500, False),
    ],
)
def test_a_name_that_a_store_does_not_take_is_the_senders_fault(name, status, expected, monkeypatch):
    """And no other refusal is: a key that has ended, say, whatever the name."""
    from flask import Flask

    for key, value in ENV.items():
        monkeypatch.setenv(key, value)
    address = f"/api/2.0/mlflow-artifacts/artifacts/{name}"
    assert failures.unfit(address, refusal(status)) is expected
    assert not failures.unfit(address, OSError(22, "x")) and not failures.unfit(address, None)
    pytest.importorskip("starlette")
    request = SimpleNamespace(url=SimpleNamespace(path=address))
    found = asyncio.run(failures.answer(request, refusal(status)))
    assert (found.status_code == 400) is expected
    app = Flask("test")
    app.register_error_handler(500, failures.blame)

    @app.route("/get-artifact")
    def get():
        raise refusal(status)

    answer = app.test_client().get(f"/get-artifact?run_uuid=1&path={name}")
    assert answer.status_code == (400 if expected else 500), answer.text


@pytest.mark.parametrize(("name", "status", "code"), [("..\\x", 400, 400), ("..\\x", 500, 500), ("x.bin", 400, 500)])
def test_nor_is_such_a_name_signed(name, status, code, monkeypatch):
    """MLflow asks the store for the object's size before it signs, and calls any refusal a failure of its own."""
    exceptions = pytest.importorskip("mlflow.exceptions")
    presigned = pytest.importorskip("stackops.stores.presigned")

    class Client:
        def head_object(self, **_):
            raise refusal(status)

    repository = presigned.SigningRepository("s3://bucket/root")
    monkeypatch.setattr(repository, "_get_s3_client", Client)
    with pytest.raises(exceptions.MlflowException) as found:
        repository.get_download_presigned_url(name)
    assert found.value.get_http_status_code() == code


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 400), (b"{}", 400), (b"null", 400), (b"{", 400), (b'{"query": 1}', 400), (b'{"query": "query {"}', 400)]
    + [(b'{"query": "query { test(inputString: \\"x\\") { output } }"}', 500)],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_is_no_query_is_the_senders_fault(method, body, status):
    from flask import Flask

    app = Flask("test")
    app.register_error_handler(500, failures.blame)

    @app.route("/graphql", methods=["GET", "POST"])
    def graphql():
        raise TypeError("MLflow has stumbled")

    answer = app.test_client().open("/graphql", method=method, data=body, content_type="application/json")
    assert answer.status_code == status


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_connection_outlives_an_exception(wrapped, caplog):
    """Through a real server: whoever comes next on the same connection is answered, and the log has the exception."""
    starlette = pytest.importorskip("starlette.applications")
    uvicorn = pytest.importorskip("uvicorn")
    app = starlette.Starlette()

    async def stumble(request):
        raise TypeError("MLflow has stumbled")

    app.add_route("/", stumble, ["POST"])
    app.add_exception_handler(Exception, failures.answer)
    served = failures.Answered(app) if wrapped else app
    server = uvicorn.Server(uvicorn.Config(served, port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < until
            time.sleep(0.01)
        connection = http.client.HTTPConnection(*server.servers[0].sockets[0].getsockname(), timeout=20)
        connection.connect()
        sock, seen = connection.sock, []
        for _ in range(2):
            connection.request("POST", "/", b"{}")
            answer = connection.getresponse()
            seen.append((answer.status, answer.read()))
            time.sleep(0.2)
            if not wrapped:  # what it is good for: uvicorn hangs up without a word
                assert sock.recv(1) == b""
                break
            assert connection.sock is sock
        assert seen == [(500, b"Internal Server Error")] * (2 if wrapped else 1)
        assert caplog.text.count("TypeError: MLflow has stumbled") == len(seen)
        connection.close()
    finally:
        server.should_exit = True
        thread.join()


def test_who_finds_no_connection_may_try_again(monkeypatch, tmp_path):
    """Without it MLflow answers 400."""
    import sqlalchemy
    from mlflow.exceptions import MlflowException
    from mlflow.store.db.utils import _get_managed_session_maker
    from sqlalchemy.orm import sessionmaker
    from sqlalchemy.pool import QueuePool

    monkeypatch.setattr(QueuePool, "_do_get", QueuePool._do_get)  # it is put back afterwards
    engine = sqlalchemy.create_engine(
        f"sqlite:///{tmp_path}/x.db", poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.01
    )
    session = _get_managed_session_maker(sessionmaker(engine), "sqlite")
    for status in (400, 503):
        with engine.connect(), pytest.raises(MlflowException) as raised, session():
            pass
        assert raised.value.get_http_status_code() == status
        failures.let_wait()
    assert "all connections to the database were in use" in str(raised.value)
