"""The access log of every way in: a line of JSON a request, who it was, no secret; and what `make logs` makes of it."""

import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from stacks import Stack, stack
from test_users import LONG, READ, ask

pytestmark = pytest.mark.docker

WAYS = {
    "none": {"purpose": "solo", "auth": "mlflow"},
    "nginx": {"backend": "sqlite", "artifact_store": "seaweedfs", "artifact_access": "presigned", "auth": "mlflow"},
    "caddy": {"backend": "sqlite", "artifact_store": "seaweedfs", "artifact_access": "presigned", "auth": "mlflow"},
}
# Writes and reads a file in parts, by signed links where the stack has them.
FILE = """
import mlflow, pathlib, tempfile
mlflow.set_experiment("logged")
with mlflow.start_run() as run, tempfile.TemporaryDirectory() as folder:
    pathlib.Path(folder, "big.bin").write_bytes(b"x" * 12_000_000)
    mlflow.log_artifact(f"{folder}/big.bin")
with tempfile.TemporaryDirectory() as folder:
    mlflow.artifacts.download_artifacts(run_id=run.info.run_id, dst_path=folder)
"""


def requests(one: Stack, way: str) -> list[dict[str, Any]]:
    """Return what the access log holds, in the words of nginx and the server."""
    service = "mlflow" if way == "none" else way
    text = one.make("logs", "RAW=1", "FOLLOW=0", f"SERVICE={service}")
    found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    if way != "caddy":
        return [line for line in found if "path" in line]
    names = {"status": "status", "bytes_in": "bytes_read", "bytes_out": "size", "seconds": "duration", "user": "user"}
    return [
        {key: line.get(name) for key, name in names.items()}
        | {"path": line["request"]["uri"], "method": line["request"]["method"], "time": line["ts"]}
        | {"address": line["request"]["client_ip"]}
        for line in found
        if line.get("msg") == "handled request"
    ]


@pytest.mark.parametrize("way", WAYS)
def test_one_line_a_request(way: str, tmp_path: Path) -> None:
    """Requests of somebody known, of somebody who is not, of nobody; and a signed link."""
    with stack(tmp_path, f"logs-{way}", WAYS[way] | {"reverse_proxy": way}) as one:
        one.up()
        one.make("user-add", "NAME=ann", input=f"{LONG}\n")
        before = len(requests(one, way))
        seconds = "&filter=name%3D%27topsecret%27"
        assert ask(one, READ + seconds, "ann", LONG).status == 200
        assert ask(one, READ, "eve", "wrong password").status == 401
        assert ask(one, "/static-files/nothing.js", "eve", "wrong password").status in (200, 401, 404)
        assert ask(one, READ).status == 401
        assert ask(one, '/a"b%22c', "ann", LONG).status < 500
        answers = [ask(one, READ, "ann", LONG) for _ in range(3)]
        assert all("x-auth-user" not in answer.headers for answer in answers)
        found = requests(one, way)[before:]
        assert [(line["path"], line["status"], line["user"] or "") for line in found[:2]] == [
            (READ.split("?")[0], 200, "ann"),
            (READ.split("?")[0], 401, ""),
        ]
        assert len(found) == 8, "one line for each request, and none for the health checks"
        assert [line["user"] or "" for line in found[2:4]] == ["", ""] and found[4]["path"].startswith("/a")
        assert {line["method"] for line in found} == {"GET"} and all(line["time"] and line["address"] for line in found)
        assert found[0]["bytes_out"] > 0 and 0 < float(found[0]["seconds"]) < 30

        login = {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": LONG}
        one.client(FILE, MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE="5242880", **login)
        files = [line for line in requests(one, way) if "big.bin" in line["path"]]
        assert any(line["method"] == "PUT" and line["bytes_in"] >= 5_000_000 for line in files)
        assert sum(line["bytes_out"] for line in files if line["method"] == "GET") >= 12_000_000
        everything = one.compose("logs", "--no-log-prefix")
        for secret in ("topsecret", "X-Amz-Signature", "wrong password", LONG, one.secret("admin_password")):
            assert secret not in everything, secret

        shown = one.make("logs", "FOLLOW=0", "SINCE=10m")
        assert f" GET    {'localhost' if way != 'none' else ''}{READ.split('?')[0]}  ann  " in shown
        assert "stackops-probe" not in shown and "healthz" not in shown
        follows(one)


def follows(one: Stack) -> None:
    """A request shows while `make logs` runs."""
    process = subprocess.Popen(
        ["make", "logs"], cwd=one.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    seen = threading.Event()

    def read() -> None:
        for line in process.stdout:
            if b"/just-now" in line:
                seen.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(30):
            ask(one, "/just-now", "ann", LONG)
            if seen.wait(1):
                break
        assert seen.is_set()
    finally:
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        process.wait(30)
        reader.join(30)
    assert not reader.is_alive()
