"""Several servers behind one proxy: each command is right with them, one that dies is not seen by clients, and they are
restarted and upgraded one after the other without a failed request."""

import json
import os
import re
import signal
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

import pytest
from stacks import Stack, run, stack

pytestmark = pytest.mark.docker

THREADS = 8
KINDS: dict[str, dict[str, Any]] = {
    "nginx": {"auth": "mlflow", "reverse_proxy": "nginx", "monitoring": True},
    "caddy": {"auth": "basic", "reverse_proxy": "caddy"},
}


@pytest.fixture(scope="module", params=KINDS)
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with two servers of one worker each."""
    answers = {"backend": "postgres", "artifact_store": "local", **KINDS[request.param]}
    settings = {"MLFLOW_REPLICAS": "2", "MLFLOW_WORKERS": "1", "POSTGRES_MAX_CONNECTIONS": "130"}
    with stack(tmp_path_factory.mktemp("two"), f"replicas-{request.param}", answers, settings) as one:
        if answers.get("monitoring"):
            one.without_grafana()
        one.up()
        yield one


def servers(one: Stack) -> list[str]:
    """Return the containers that are servers and run."""
    return sorted(one.compose("ps", "--quiet", "--status", "running", "mlflow").split())


class Client:
    """A client without any patience: what fails, it counts, and sends nothing twice."""

    def __init__(self, one: Stack, login: dict[str, str] | None = None):
        self.at = urlsplit(one.url)
        self.headers = {"Content-Type": "application/json"}
        if login := one.login() if login is None else login:
            word = f"{login['MLFLOW_TRACKING_USERNAME']}:{login['MLFLOW_TRACKING_PASSWORD']}"
            self.headers["Authorization"] = "Basic " + b64encode(word.encode()).decode()
        self.door = HTTPConnection(self.at.hostname, self.at.port, timeout=60)

    def call(self, method: str, path: str, body: dict | None = None) -> tuple[int, dict]:
        """Return status and answer of MLflow's API; an answer that is no JSON is an empty one."""
        self.door.request(method, f"/api/2.0/mlflow/{path}", json.dumps(body) if body else None, self.headers)
        answer = self.door.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if answer.headers.get_content_type() == "application/json" else {}


class Load:
    """Clients that write and read until they are told to stop; what was acknowledged, and what was not."""

    def __init__(self, one: Stack, name: str):
        self.one, self.first = one, Client(one)
        self.experiment = self.first.call("POST", "experiments/create", {"name": name})[1]["experiment_id"]
        body = {"experiment_id": self.experiment}
        self.runs = [self.first.call("POST", "runs/create", body)[1]["run"]["info"]["run_id"] for _ in range(THREADS)]
        self.acknowledged = [set[int]() for _ in self.runs]
        self.seen: Counter[str] = Counter()
        self.bad: list[str] = []
        self.slowest = 0.0
        self.over = threading.Event()

    def work(self, number: int) -> None:
        """Be one client."""
        client, step = Client(self.one), 0
        while not self.over.is_set():
            step += 1
            began, kind = time.monotonic(), "GET" if step % 4 == 0 else "POST"
            try:
                if kind == "GET":
                    status, _ = client.call("GET", f"runs/get?run_id={self.runs[number]}")
                else:
                    body = {"run_id": self.runs[number], "key": "m", "value": step, "step": step, "timestamp": 1}
                    status, _ = client.call("POST", "runs/log-metric", body)
                    if status == 200:
                        self.acknowledged[number].add(step)
                self.seen[f"{kind} {status}"] += 1
                if status != 200:
                    self.bad.append(f"{time.strftime('%H:%M:%S')} {kind} {status}")
            except (OSError, HTTPException) as error:
                self.seen[f"{kind} {type(error).__name__}"] += 1
                self.bad.append(f"{time.strftime('%H:%M:%S')} {kind} {error!r}")
                client = Client(self.one)
            self.slowest = max(self.slowest, time.monotonic() - began)

    def lost(self) -> int:
        """Return how many acknowledged writes are not there."""
        count, client = 0, Client(self.one)
        for run_id, steps in zip(self.runs, self.acknowledged, strict=True):
            path = f"metrics/get-history?run_id={run_id}&metric_key=m&max_results=25000"
            count += len(steps - {metric["step"] for metric in client.call("GET", path)[1]["metrics"]})
        return count


@contextmanager
def load(one: Stack, name: str) -> Iterator[Load]:
    """Keep clients at work meanwhile; whatever was acknowledged is there afterwards."""
    made = Load(one, f"{name} {time.time()}")
    threads = [threading.Thread(target=made.work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(2)
        yield made
        time.sleep(2)
    finally:
        made.over.set()
        for thread in threads:
            thread.join()
        wrote = sum(map(len, made.acknowledged))
        print(f"\n{name}: {dict(made.seen)}, {wrote} acknowledged, slowest {made.slowest:.2f} s")
    assert wrote > 100 and made.lost() == 0


WORDS = """
import sys, mlflow
mlflow.set_experiment("words")
for number in range(int(sys.argv[1])):
    with mlflow.start_run() as run:
        mlflow.log_metric("loss", number)
        mlflow.log_text("x" * 1000, "note.txt")
    found = mlflow.get_run(run.info.run_id)
    assert found.data.metrics == {"loss": number} and mlflow.artifacts.load_text(f"{run.info.artifact_uri}/note.txt")
"""
ASK = """
import base64, sys, urllib.error, urllib.request
word = base64.b64encode(f"ann:{sys.argv[1]}".encode()).decode()
headers = {"Authorization": f"Basic {word}", "X-Real-IP": sys.argv[2]}
path = "/stackops/login" if sys.argv[3] == "basic" else "/api/2.0/mlflow/experiments/search?max_results=1"
try:
    print(urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:5000" + path, headers=headers)).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


def test_every_command_is_right(two: Stack) -> None:
    """With two servers, each command does what it says, for both."""
    assert len(servers(two)) == 2
    assert two.compose("config", "--format", "json").count('"replicas": 2') == 1
    two.client(WORDS, "6")
    two.make("check")
    said = two.make("status")
    assert said.count("(healthy)") >= 3 and "ready" in said.splitlines()
    said = two.make("size")
    assert re.search(r"^servers +2, each 1 workers with . pools", said, re.MULTILINE), said
    logs = two.make("logs", "FOLLOW=0", "RAW=1", "SERVICE=mlflow")
    assert logs.count("Started parent process") + logs.count("Started server process") >= 2
    two.make("gc", "APPLY=1")
    two.make("backup")
    two.make("doctor")
    up = two.make("up")
    assert "is ready" in up and "Recreate" not in up
    # All of one server's settings are those of the other.
    env = [run("docker", "exec", server, "env").stdout.splitlines() for server in servers(two)]
    assert {line for line in env[0] if "HOSTNAME" not in line} == {line for line in env[1] if "HOSTNAME" not in line}


def test_users_change_for_all_servers(two: Stack) -> None:
    """A password that was changed is forgotten by both at once, though only one was told."""
    kind = two.answers["auth"]

    def answers(password: str) -> set[str]:
        asked = [run("docker", "exec", one, "python", "-c", ASK, password, "10.9.8.7", kind) for one in servers(two)]
        return {one.stdout.strip() for one in asked}

    two.make("user-add", "NAME=ann", input="first password of ann\n")
    right = "204" if kind == "basic" else "200"
    assert answers("first password of ann") == {right}
    two.make("user-password", "NAME=ann", input="second password of ann\n")
    assert answers("first password of ann") == {"401"}
    assert answers("second password of ann") == {right}
    two.make("user-remove", "NAME=ann")
    assert answers("second password of ann") == {"401"}


@pytest.mark.parametrize("two", [name for name, answers in KINDS.items() if "monitoring" in answers], indirect=True)
def test_figures_of_all_servers(two: Stack) -> None:
    """The service metrics counts the workers of both, and how many are ready."""
    until = time.monotonic() + 60
    while True:
        program = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9464/metrics').read().decode())"
        text = two.compose("exec", "-T", "metrics", "python", "-c", program)
        names = set(re.findall(r'process_start_time_seconds\{server="(\w+)"', text))
        if {"stack_servers_ready 2.0", "stack_servers 2.0", "stack_workers 2.0"} <= set(text.splitlines()):
            break
        assert time.monotonic() < until, text
        time.sleep(2)
    assert {name[:12] for name in servers(two)} == names


def test_a_dead_server_is_not_seen(two: Stack) -> None:
    """A server is killed under load: at most what it was working on fails, and the stock client sees nothing."""
    with load(two, "killed") as seen:
        stock = threading.Thread(target=two.client, args=(WORDS, "30"))
        stock.start()
        time.sleep(2)
        for _ in range(2):
            victim = servers(two)[0]
            number = int(run("docker", "inspect", "--format", "{{.State.Pid}}", victim).stdout)
            assert number > 1
            os.kill(number, signal.SIGKILL)  # not by docker, which then would not start it again
            until = time.monotonic() + 60
            while run("docker", "exec", victim, "stackops", "ready").returncode:
                assert time.monotonic() < until, "it does not come back"
                time.sleep(1)
            time.sleep(11)  # until the proxy uses it again
        stock.join()
    # A write that had reached the server is not repeated by the proxy: nobody knows whether it was done.
    assert set(seen.seen) <= {"GET 200", "POST 200", "POST 502"}, seen.bad
    assert seen.seen["POST 502"] <= 2 * THREADS and seen.slowest < 10
    two.client(WORDS, "3")
    assert len(servers(two)) == 2


def test_restart_without_a_failed_request(two: Stack) -> None:
    """Of two servers, and of one."""
    before = servers(two)
    with load(two, "restart of two") as seen:
        said = two.make("restart")
    assert not seen.bad and "done" in said, (seen.bad, said)
    assert len(servers(two)) == 2 and not set(before) & set(servers(two))
    two.setting("MLFLOW_REPLICAS", "1")
    try:
        with load(two, "from two to one") as seen:
            two.make("restart")
        assert not seen.bad and len(servers(two)) == 1, seen.bad
        before = servers(two)
        with load(two, "restart of one") as seen:
            two.make("restart")
        assert not seen.bad and len(servers(two)) == 1 and before != servers(two), seen.bad
        two.make("up")
        assert len(servers(two)) == 1
    finally:
        two.setting("MLFLOW_REPLICAS", "2")
        two.make("restart")
    assert len(servers(two)) == 2


def test_upgrade_without_a_failed_request(two: Stack) -> None:
    """Where no table changes, an upgrade replaces one server after the other; one that fails goes back so, too."""
    file = two.folder / "stackops/stackops/serve.py"
    text = file.read_text()
    before, image = servers(two), two.settings()["MLFLOW_IMAGE"]
    two.setting("MLFLOW_IMAGE", f"{image}-next")
    try:
        file.write_text(text.replace("    env = settings.adopt()\n", '    raise StackError("planted")\n', 1))
        with load(two, "upgrade that fails") as seen:
            said = two.make("upgrade", fails=True)
        assert "the servers give way one after the other" in said and "clients go on" in said, said
        assert not seen.bad and servers(two) == before, (seen.bad, said)
        assert "planted" in said and "the stack runs as before" in said

        file.write_text(text + "# newer\n")
        with load(two, "upgrade") as seen:
            said = two.make("upgrade")
        assert "the servers give way one after the other" in said and "done" in said, said
        assert not seen.bad and len(servers(two)) == 2 and not set(servers(two)) & set(before), (seen.bad, said)
        assert "# newer" in run("docker", "exec", servers(two)[0], "cat", "/stackops/stackops/serve.py").stdout
        assert "nothing to do" in two.make("upgrade")
        two.make("upgrade-undo", "REPLACE=1")
        assert "# newer" not in run("docker", "exec", servers(two)[0], "cat", "/stackops/stackops/serve.py").stdout
    finally:
        file.write_text(text)
        two.setting("MLFLOW_IMAGE", image)
        run("docker", "image", "rm", "--force", f"{image}-next")
