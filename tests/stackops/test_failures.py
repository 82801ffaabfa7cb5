"""What clients are told when the artifact store fails."""

import asyncio
import errno
import json
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
