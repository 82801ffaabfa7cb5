"""Files larger than the server may hold: through it in a stream, or past it by presigned links. Bytes are compared."""

import contextlib
import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from stacks import Stack, run, stack

STACKS: dict[str, dict[str, Any]] = {
    "proxied": {"artifact_store": "seaweedfs", "reverse_proxy": "nginx", "auth": "basic", "url_prefix": "/mlflow"},
    "no-proxy": {"artifact_store": "seaweedfs"},
    "presigned": {
        "artifact_store": "seaweedfs",
        "artifact_access": "presigned",
        "auth": "basic",
        "domain": "mlflow.example.com",
        "store_domain": "s3.example.com",
    },
}

# Logs a file of that many MiB, fetches it again and compares; each block of it is unlike every other.
UP_AND_DOWN = """
import hashlib, os, sys, tempfile
from pathlib import Path
import mlflow
size, folder, block = int(sys.argv[1]), Path(tempfile.mkdtemp()), os.urandom(1 << 20)
digest = hashlib.sha256()
with open(folder / "big.bin", "wb") as file:
    for number in range(size):
        part = number.to_bytes(8, "big") + block[8:]
        digest.update(part)
        file.write(part)
mlflow.set_experiment("big")
with mlflow.start_run() as run:
    mlflow.log_artifact(str(folder / "big.bin"))
(folder / "big.bin").unlink()
client = mlflow.MlflowClient()
(found,) = client.list_artifacts(run.info.run_id)
assert (found.path, found.file_size) == ("big.bin", size << 20), found
back = client.download_artifacts(run.info.run_id, "big.bin", str(folder))
with open(back, "rb") as file:
    assert hashlib.file_digest(file, "sha256").digest() == digest.digest(), "other bytes came back"
os.unlink(back)
print(run.info.run_id)
"""

# What the server's processes hold in memory, what temporary files take (deleted ones too), what the network brought.
LOOK = """
import json, os, re
held, files = 0, {}
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        status = open(f"/proc/{pid}/status").read()
        held += int((re.search(r"RssAnon:\\s+(\\d+)", status) or [0, 0])[1])
        for fd in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{fd}"
            if os.readlink(path).startswith("/var/tmp/"):
                found = os.stat(path)
                files[found.st_ino] = found.st_blocks * 512
    except OSError:
        continue
for folder, _, names in os.walk("/var/tmp"):
    for name in names:
        try:
            found = os.stat(os.path.join(folder, name))
            files[found.st_ino] = found.st_blocks * 512
        except OSError:
            continue
lines = [line.split() for line in open("/proc/net/dev").readlines()[2:]]
network = sum(int(line[1]) for line in lines if line[0] != "lo:")
print(json.dumps({"memory": held >> 10, "disk": sum(files.values()) >> 20, "network": network >> 20}))
"""


@pytest.fixture(scope="module", params=STACKS, ids=str)
def started(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose server may use 1 GiB of memory."""
    folder = tmp_path_factory.mktemp(request.param)
    with stack(folder, f"big-{request.param}", STACKS[request.param], {"MLFLOW_MEMORY": "1g"}) as made:
        made.up()
        yield made


def look(started: Stack) -> dict[str, int]:
    """Return what the server uses now, in MiB: memory of its processes, temporary files, bytes received so far."""
    return json.loads(started.compose("exec", "-T", "mlflow", "python", "-c", LOOK))


@contextlib.contextmanager
def watched(started: Stack) -> Iterator[dict[str, int]]:
    """Fill the dictionary with the most that the server used while the block ran."""
    most, over = look(started), threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            with contextlib.suppress(AssertionError, ValueError):  # a look on a busy machine may fail; the next will do
                now = look(started)
                most.update({name: max(most[name], value) for name, value in now.items()})

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def log_and_fetch(started: Stack, size: int) -> dict[str, int]:
    """Log and fetch a file of `size` MiB from outside; return the most that the server used meanwhile."""
    before = look(started)
    with watched(started) as most:
        started.client(UP_AND_DOWN, str(size), timeout=600)
    assert started.fence_log() == []
    return most | {"network": most["network"] - before["network"]}


def test_600_mb(started: Stack) -> None:
    """Above the size from which MLflow's client wants to go past the server."""
    most = log_and_fetch(started, 600)
    assert most["memory"] < 500, most
    if started.answers["artifact_access"] == "presigned":
        assert most["network"] < 60, f"the bytes went through the server: {most}"
    else:
        assert most["network"] > 1100, f"the bytes went past the server: {most}"
        assert most["disk"] < 100, most


@pytest.mark.parametrize("started", ["proxied"], indirect=True)
def test_2_gib(started: Stack) -> None:
    """Twice the memory that the server's container may use, and no more on its disk than a few parts."""
    most = log_and_fetch(started, 2048)
    assert most["memory"] < 500 and most["disk"] < 100, most
    assert json.loads(run("docker", "inspect", started.container("mlflow")).stdout)[0]["RestartCount"] == 0


INTERRUPTED = """
import os, sys, threading, time
import mlflow, requests
from pathlib import Path
mlflow.set_experiment("big")
with mlflow.start_run() as run:
    pass
def body():
    for number in range(100):
        yield bytes(1 << 20)
        if number == 60:
            print(run.info.run_id, flush=True)
            os._exit(0)
path = run.info.artifact_uri.split(":/")[1] + "/half.bin"
url = f"{os.environ['MLFLOW_TRACKING_URI']}/api/2.0/mlflow-artifacts/artifacts/{path}"
login = (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"])
requests.put(url, data=body(), auth=login)
"""

LIST = """
import sys, mlflow
print([file.path for file in mlflow.MlflowClient().list_artifacts(sys.argv[1])])
"""


@pytest.mark.parametrize("started", ["proxied"], indirect=True)
def test_an_upload_that_breaks_off_leaves_nothing(started: Stack) -> None:
    """The client dies in the middle: no object, no part on the server's disk."""
    run_id = started.client(INTERRUPTED).split()[-1]
    until = time.monotonic() + 60
    while look(started)["disk"] > 0 and time.monotonic() < until:
        time.sleep(1)
    assert look(started)["disk"] == 0
    assert started.client(LIST, run_id).strip().endswith("[]")


SIGNED = """
import os, sys, mlflow, requests
mlflow.set_experiment("big")
with mlflow.start_run() as run:
    mlflow.log_text("hello", "a.txt")
path = run.info.artifact_uri.split(":/")[1] + "/a.txt"
login = (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"])
url = f"{os.environ['MLFLOW_TRACKING_URI']}/api/2.0/mlflow-artifacts/presigned/{path}"
assert requests.get(url).status_code == 401, "a link without a login"
link = requests.get(url, auth=login).json()["url"]
assert requests.get(link).text == "hello"
assert requests.get(link.replace("a.txt", "b.txt")).status_code == 403, "a link for one object opens another"
assert requests.put(link, data=b"x").status_code == 403, "a link to read can write"
assert requests.get(link.split("?")[0]).status_code == 403, "no link is needed"
print(link)
"""


@pytest.mark.parametrize("started", ["presigned"], indirect=True)
def test_a_link_opens_one_object_and_only_our_pages_use_it(started: Stack) -> None:
    """Signed links are narrow; the bucket tells browsers which pages may use them; no log keeps one."""
    link = started.client(SIGNED).split()[-1]
    assert link.startswith(f"http://s3.example.com:{started.answers['http_port']}/")
    address = next(iter(started.doors.values()))
    for origin, allowed in (
        (f"http://mlflow.example.com:{started.answers['http_port']}", True),
        ("http://evil.example.net", False),
    ):
        asked = urllib.request.Request(
            link.replace(f"s3.example.com:{started.answers['http_port']}", address),
            method="OPTIONS",
            headers={
                "Host": f"s3.example.com:{started.answers['http_port']}",
                "Origin": origin,
                "Access-Control-Request-Method": "GET",
            },
        )
        try:
            answer = urllib.request.urlopen(asked, timeout=30)
        except urllib.error.HTTPError as error:
            answer = error
        assert (answer.headers.get("Access-Control-Allow-Origin") in (origin, "*")) == allowed, (origin, answer.status)
    signature = re.search(r"X-Amz-Signature=(\w+)", link)[1]
    assert signature not in started.compose("logs"), "a link is in a log"
