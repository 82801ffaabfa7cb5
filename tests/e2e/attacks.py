"""What test_attacks.py attacks with: the stacks that it starts, raw requests, and the walk over all routes."""

import contextlib
import http.client
import json
import re
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import outside
from combinations import valid
from stacks import HERE, ROOT, Stack, stack

NAME, SECRET = "prey-name", "prey-secret-b1946ac92492d234"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
# What the stacks store with, in turn, so that the attacks on artifacts and on the networks meet every kind.
STORAGE = (
    {"backend": "postgres", "artifact_store": "seaweedfs", "artifact_access": "presigned", "url_prefix": "/mlflow"},
    {"backend": "sqlite", "artifact_store": "local", "artifact_access": "proxied", "url_prefix": ""},
    {"backend": "postgres", "artifact_store": "minio", "artifact_access": "proxied", "url_prefix": ""},
)
# Every login and every proxy once; `make test-all` attacks the other pairs too.
ALWAYS = {("basic", "nginx"), ("mlflow", "caddy"), ("oidc", "nginx"), ("none", "none")}
# MLflow's AI gateway answers only where it is asked for; its routes are worth an attack.
# One process, so that a login which it has seen is known to all of it after wrong passwords.
SETTINGS = {"MLFLOW_ENABLE_AI_GATEWAY": "true", "MLFLOW_WORKERS": "1"}
Login = tuple[str, str] | None


def modes() -> list[dict[str, str]]:
    """Return the answers of the stacks to attack: every login with every proxy that it works with, and none at all."""
    pairs = sorted({(answers["auth"], answers["reverse_proxy"]) for answers in valid()})
    pairs = [(auth, proxy) for auth, proxy in pairs if auth != "none" or proxy == "none"]
    found, turn = [], {"none": 1}
    for auth, proxy in sorted(pairs, key=lambda pair: (pair[0] != "mlflow", pair[1] == "none", pair)):
        kind = "none" if proxy == "none" else "proxy"
        storage = STORAGE[1] if kind == "none" else STORAGE[turn.setdefault(kind, 0) % 3]
        turn[kind] += 1
        found.append({"auth": auth, "reverse_proxy": proxy, **storage})
    return found


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")


@dataclass
class Target:
    """A stack that runs, seen from outside."""

    stack: Stack
    prey: dict[str, str] = field(default_factory=dict)  # what requests call the admin's things
    table: list[tuple[str, str]] = field(default_factory=list)  # the routes, once somebody asked
    kept: threading.local = field(default_factory=threading.local)  # each thread's open connection

    def answer(self, name: str) -> str:
        """Return an answer to a question."""
        return self.stack.answers[name]

    @property
    def prefix(self) -> str:
        """The path under which MLflow answers."""
        return self.answer("url_prefix")

    @property
    def host(self) -> str:
        """The public name and port."""
        return next(iter(self.stack.doors))

    @property
    def admin(self) -> Login:
        """Who may do everything; None where nobody is asked."""
        return None if self.answer("auth") == "none" else ("admin", self.stack.secret("admin_password"))

    def connect(self, timeout: float = 60) -> socket.socket:
        """Return a connection to the published port."""
        address, port = self.stack.doors[self.host].split(":")
        raw = socket.create_connection((address, int(port)), timeout)
        if not self.stack.url.startswith("https:"):
            return raw
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context.wrap_socket(raw, server_hostname=self.host.split(":")[0])

    def ask(
        self, method: str, path: str, login: Login = None, body: Any = None, timeout: float = 60, **headers: str
    ) -> Answer:
        """Send a request whose path is not touched on its way; `body` becomes JSON unless it is bytes.

        An underscore in a header's name stands for a hyphen.
        """
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Host": self.host, "Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        if login:
            sent["Authorization"] = basic(login)
        if data is not None or method in ("POST", "PUT", "PATCH"):
            sent["Content-Length"] = str(len(data or b""))
        kept, self.kept.connection = getattr(self.kept, "connection", None), None
        if kept:
            # The other side may have closed it before it saw this request.
            with contextlib.suppress(ConnectionError, http.client.BadStatusLine):
                kept.sock.settimeout(timeout)
                return self.exchange(kept, method, path, sent, data)
            kept.close()
        fresh = http.client.HTTPConnection("unused")
        fresh.sock = self.connect(timeout)
        return self.exchange(fresh, method, path, sent, data)

    def exchange(
        self, connection: http.client.HTTPConnection, method: str, path: str, sent: dict[str, str], data: bytes | None
    ) -> Answer:
        """Send a request and read its answer; this thread keeps the connection if both sides would."""
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in sent.items():
            connection.putheader(name, value)
        connection.endheaders(data)
        got = connection.getresponse()
        try:
            read = got.read()
        except http.client.IncompleteRead as cut:
            # The server refuses an upload before it has read it and hangs up; a proxy may lose the words.
            assert got.status in (401, 403, 413, 429) and data is not None, f"{method} {path}: {got.status}, cut"
            read = cut.partial
        if got.will_close or not got.isclosed():
            connection.close()
        else:
            self.kept.connection = connection
        return Answer(got.status, {k.lower(): v for k, v in got.getheaders()}, read)

    def hang_up(self) -> None:
        """Let this thread's next request come over a connection of its own."""
        if kept := getattr(self.kept, "connection", None):
            kept.close()
        self.kept.connection = None

    def mlflow(self, method: str, path: str, login: Login = None, **more: Any) -> Answer:
        """Send a request to a path of MLflow's."""
        return self.ask(method, self.prefix + path, login, **more)

    def inside(self, script: str, *words: str, **more: Any) -> str:
        """Run a Python program in the server's container."""
        return self.stack.compose("exec", "-T", "mlflow", "python", "-c", script, *words, **more)

    def raw(self, data: bytes, seconds: float = 10, silence: float = 1) -> bytes:
        """Send bytes; return all that comes back until the other side closes, or falls silent."""
        received = b""
        with self.connect(seconds) as connection, contextlib.suppress(TimeoutError, ConnectionError):
            connection.sendall(data)
            while piece := connection.recv(65536):
                received += piece
                connection.settimeout(silence)
        return received


def basic(login: tuple[str, str]) -> str:
    """Return the header of a login."""
    return "Basic " + b64encode(":".join(login).encode()).decode()


@contextlib.contextmanager
def started(folder: Path, answers: dict[str, str]) -> Iterator[Target]:
    """Start the stack of a mode, with whatever it needs outside; remove all of it afterwards."""
    with contextlib.ExitStack() as exits:
        services = [
            exits.enter_context(start())
            for (question, value), start in outside.FOR.items()
            if answers.get(question) == value
        ]
        given = answers | {name: value for service in services for name, value in service.answers.items()}
        name = f"attack-{answers['auth']}-{answers['reverse_proxy']}"
        made = exits.enter_context(stack(folder, name, given, SETTINGS))
        for service in services:
            service.fill(made)
        made.up()
        yield Target(made)


def routes(target: Target) -> list[tuple[str, str]]:
    """Return every path and method that the server registers, and the proxy's and the monitoring's own."""
    if not target.table:
        listed = json.loads(target.inside((HERE / "routes.py").read_text()))
        target.table = [(path, method) for path, method in listed] + [("/healthz", "GET"), ("/metrics", "GET")]
    return target.table


# --- the walk

SPECIAL = {"{provider}": "openai", "{key}": "tag", "{tag_key}": "tag", "{alias:path}": "alias", "{key:path}": "tag"}
FAMILIES = {
    "/registered-models": "registered",
    "/model-versions": "registered",
    "/mcp-servers": "mcp",
    "/scorer": "scorer",
    "/label-schemas": "schema",
    "/review-queues": "queue",
    "/gateway/secrets": "key",
    "/gateway": "endpoint",
}
TAKEN = {"key": "taken", "value": "1"}


def fields(path: str, prey: dict[str, str]) -> dict[str, Any]:
    """Return every field by which a request of this path may name the prey, and what it would change."""
    name = next((prey[kind] for part, kind in FAMILIES.items() if part in path), prey["experiment_name"])
    one = {key: prey[key] for key in prey if key.endswith("_id")}
    many = {
        f"{key}s": [prey[key]] for key in ("experiment_id", "run_id", "trace_id", "schema_id", "dataset_id")
    }  # fmt: skip
    found = one | many | {
        "run_uuid": prey["run_id"], "request_id": prey["trace_id"], "request_ids": [prey["trace_id"]],
        "experiment_name": prey["experiment_name"], "name": name, "new_name": "taken", "version": "1",
        "alias": "alias", "key": "taken", "value": "1", "metric_key": "metric", "path": "secret.txt",
        "status": "FINISHED", "stage": "Production", "description": "taken", "instruction": "taken",
        "end_time": 1, "timestamp": 1, "step": 1, "max_results": 100, "max_timestamp_millis": 99999999999999,
        "locations": [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": prey["experiment_id"]}}],
        "username": "admin", "password": "taken-by-a-stranger", "is_admin": True, "user_id": "1", "role_id": 1,
        "resource_type": "experiment", "resource_id": prey["experiment_id"], "permission": "MANAGE",
        "secret_name": prey["key"], "secret_value": {"api_key": "taken"}, "users": ["stranger"],
        "model_json": json.dumps({"artifact_path": "m", "utc_time_created": "2026-01-01 00:00:00", "run_id": "x"}),
        "query": QUERY % (prey["run_id"], prey["experiment_id"]), "source_run_id": prey["run_id"],
        "assessment": {"assessment_name": "taken", "trace_id": prey["trace_id"], "feedback": {"value": True},
                       "source": {"source_type": "HUMAN", "source_id": "x"}},
        "update_mask": "assessmentName", "metrics": [{"key": "taken", "value": 1, "timestamp": 1, "step": 0}],
        "params": [TAKEN], "tags": [TAKEN], "tag": "taken", "records": json.dumps([{"inputs": {"q": "taken"}}]),
        "serialized_scorer": "{}", "items": [], "item_type": "TRACE", "item_ids": [prey["trace_id"]],
        "view_type": "TRACES", "metric_name": "trace_count", "aggregations": [{"aggregation_type": "COUNT"}],
        "filename": "secret.txt", "num_parts": 1, "artifact_file_path": "secret.txt",
        "model": prey["endpoint"], "messages": [{"role": "user", "content": "x"}], "provider": "openai",
        "budget_policy_id": "1", "guardrail_id": "1", "binding_id": "1", "scorer_ids": [prey["scorer"]],
        "page": "x", "source": f"runs:/{prey['run_id']}/x", "enable_comment": True, "sample_rate": 0.5,
    }  # fmt: skip
    if "/datasets/" in path:
        found["tags"] = json.dumps({"taken": "1"})
    if "/issues" in path:
        found["status"] = "resolved"
    if "/jobs" in path:
        found |= {"params": {}, "job_name": "run_online_trace_scorer", "status": None}
    if "presigned-" in path:
        del found["model_id"]
    if "/traces" in path:
        found["status"] = "OK"
    if "/mpu/" in path or "presigned" in path:
        found["path"] = "secret.txt"
    if "mlflow-artifacts/artifacts" in path:
        found["path"] = prey["artifact_path"].rsplit("/", 1)[0]
    return found


QUERY = """query {
  mlflowGetRun(input: {runId: "%s"}) { run { info { runName } data { params { key value } tags { key value } } } }
  mlflowGetExperiment(input: {experimentId: "%s"}) { experiment { name tags { key value } } }
}"""


def filled(path: str, prey: dict[str, str]) -> str:
    """Return the path with the prey's names as its parameters."""

    def value(match: re.Match[str]) -> str:
        name = match[0].strip("{}").split(":")[0]
        known = {
            "artifact_path": prey["artifact_path"], "request_id": prey["trace_id"], "version": "1",
            "name": prey["mcp"], "endpoint_name": prey["endpoint"], "filename": "x", "path": "x",
        }  # fmt: skip
        return SPECIAL.get(match[0]) or known.get(name) or prey.get(name) or "1"

    return re.sub(r"{[^}]+}", value, path)


def attack(target: Target, path: str, method: str, login: Login) -> Answer:
    """Send the request that would read or change the prey by this route."""
    given = fields(path, target.prey)
    address = filled(path, target.prey)
    if method in ("GET", "DELETE"):
        pairs = [
            (key, word)
            for key, value in given.items()
            for word in (value if isinstance(value, list) else [value])
            if isinstance(word, str | int) and key not in ("query", "model_json", "records")
        ]
        address += "?" + "&".join(f"{key}={quoted(str(word))}" for key, word in pairs)
    elif "upload-artifact" in path:
        address += f"?run_uuid={target.prey['run_id']}&path=secret.txt"
    if "upload-artifact" in path or ("/artifacts/" in path and method == "PUT"):
        data: Any = b"taken"
    else:
        data = None if method == "GET" else given
    return target.mlflow(
        method, address, login, body=data, X_MLflow_Experiment_Id=target.prey["experiment_id"], timeout=120
    )


def quoted(text: str) -> str:
    """Return text for a query."""
    return quote(text, safe="")


def walk(target: Target, requests: list[tuple[str, str]], login: Login) -> dict[tuple[str, str], Answer]:
    """Attack by each route with each method; return what came of it."""
    with ThreadPoolExecutor(6) as threads:
        answers = threads.map(lambda request: attack(target, *request, login), requests)
        return dict(zip(requests, answers, strict=True))


# Weaknesses that others have found in a route: where the walk must have been.
WEAK = {
    "CVE-2025-15381": r"/traces/.*assessments",
    "CVE-2026-8147": r"/mlflow/traces/",
    "CVE-2026-0545": r"/jobs",
    "CVE-2026-2652": r"^(/ajax-api/3\.0/jobs|/v1/traces)",
    "CVE-2026-2651": r"/mlflow-artifacts/mpu/",
    "CVE-2026-13484": r"/label-schemas/",
}


def twin(path: str) -> str:
    """Return the other name under which MLflow registers a route, /api for /ajax-api."""
    return path.replace("/ajax-api/", "/api/", 1)


def once(table: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return each route under one of its names."""
    return [(path, method) for path, method in table if twin(path) == path or (twin(path), method) not in table]


def every_method(table: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return every route, and every path with the methods that it does not have, under one of its names."""
    others = ((path, method) for path in {path for path, _ in once(table)} for method in METHODS)
    return sorted({*table, *others})


ROUTES = ROOT / "docs" / "routes.md"
