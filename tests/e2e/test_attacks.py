"""Stacks under attack: every login with every proxy, from outside, by a user without rights, and from the networks.

One stack per mode bears all its attacks. `pytest --golden-update` writes docs/routes.md anew.
"""

import difflib
import json
import re
import select
import socket
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import outside
import pytest
from _pytest.mark.structures import ParameterSet
from attacks import (
    ALWAYS,
    METHODS,
    NAME,
    ROUTES,
    SECRET,
    WEAK,
    Answer,
    Target,
    attack,
    basic,
    every_method,
    modes,
    once,
    routes,
    started,
    walk,
)
from stacks import HERE, run

STRANGER = ("stranger", "a-password-of-a-stranger")
UNKNOWN = ("nobody-of-this-name", "a-wrong-password")
SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"

# What MLflow's own login lets through without a password, and why that is harmless.
PUBLIC = {
    "/health": "says that the process lives; a proxy of this stack does not pass it on",
    "/static-files/{path:path}": "the code of the user interface, the same in every MLflow",
    "/api/3.0/mlflow/server-info": "which features are on; clients ask before they log in",
    "/ajax-api/3.0/mlflow/server-info": "the same",
}
# What is answered to a user without any permission, and what is in it.
OPEN = {
    "/": "the user interface, without data",
    "/version": "MLflow's version",
    "/graphql": "`null` for what the user may not read",
    "/gateway/mlflow/v1/models": "the endpoints that the user may use: none",
    "/mlflow/assistant/config": "an empty configuration",
    "/mlflow/assistant/providers": "names of programs, of which the image has none",
    "/mlflow/demo/generate": "makes MLflow's example experiment, or says that it exists",
    "/mlflow/experiments/search": "what the user may read: nothing",
    "/mlflow/gateway-proxy": "an empty list: no deployments server is set",
    "/mlflow/gateway/budgets/list": "an empty list",
    "/mlflow/gateway/budgets/windows": "an empty list",
    "/mlflow/gateway/endpoints/list": "an empty list",
    "/mlflow/gateway/model-definitions/list": "an empty list",
    "/mlflow/gateway/secrets/config": "whether keys can be stored",
    "/mlflow/gateway/secrets/list": "an empty list",
    "/mlflow/gateway/supported-models": "MLflow's own list of models",
    "/mlflow/gateway/supported-providers": "MLflow's own list of providers",
    "/mlflow/gateway/provider-config": "which fields the key of a provider has",
    "/jobs/search": "the user's own jobs: none",
    "/mlflow/logged-models/search": "what the user may read: nothing",
    "/mlflow/mcp-servers": "an empty list",
    "/mlflow/mcp-servers/endpoints": "an empty list",
    "/mlflow/model-versions/search": "an empty list",
    "/mlflow/registered-models/search": "an empty list",
    "/mlflow/runs/search": "an empty list",
    "/mlflow/server-info": "public",
    "/mlflow/scorers/online-configs": "an empty list",
    "/mlflow/ui-telemetry": "that telemetry is off",
    "/mlflow/users/current": "the user",
    "/mlflow/users/current/permissions": "the user's permissions: none",
    "/mlflow/users/list": "the names of all users",
}


def marked(mode: dict[str, str]) -> ParameterSet:
    """Return the mode as a parameter, marked `full` unless every run attacks it."""
    pair = mode["auth"], mode["reverse_proxy"]
    return pytest.param(mode, id="-".join(pair), marks=[] if pair in ALWAYS else pytest.mark.full)


@pytest.fixture(scope="module", params=map(marked, modes()))
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A running stack of each mode; with MLflow's users, an admin with one of everything and a user without rights."""
    mode = request.param
    with started(tmp_path_factory.mktemp("attack"), mode) as it:
        alive(it)  # who has been let in stays in, whatever is guessed from the same address later
        if mode["auth"] == "mlflow":
            settle(it)
        yield it


def settle(it: Target) -> None:
    """Make the prey and the stranger."""
    printed = it.stack.client((HERE / "prey.py").read_text(), NAME, SECRET, doors=it.stack.doors)
    it.prey = json.loads(printed.splitlines()[-1])
    if it.answer("auth") == "oidc":
        return  # where only the admin has a password
    user = {"username": STRANGER[0], "password": STRANGER[1]}
    assert it.mlflow("POST", "/api/2.0/mlflow/users/create", it.admin, body=user).status == 200
    # Let in once, so that nobody's wrong passwords slow the stranger: the walk sees answers, not 429.
    assert it.mlflow("GET", SEARCH, STRANGER).status == 200


def alive(it: Target) -> None:
    """The server still works for whoever may come in."""
    assert it.mlflow("GET", SEARCH, it.admin).status == 200


NOBODY: dict[str, str] = dict.fromkeys(
    (
        "experiment_id",
        "run_id",
        "trace_id",
        "schema_id",
        "dataset_id",
        "experiment_name",
        "key",
        "endpoint",
        "mcp",
        "registered",
        "scorer",
        "schema",
        "queue",
        "artifact_path",
        "model_id",
    ),
    "1",
)


def test_without_a_login(target: Target) -> None:
    """Every route with every method: what asks for no password is on the list, and the prey stays hidden."""
    if target.answer("auth") == "none":
        return
    table = routes(target)
    target.prey = target.prey or NOBODY
    for weakness, part in WEAK.items():
        assert any(re.search(part, path) for path, _ in table), f"{weakness}: no route that is walked"
    some = [(path, method) for path, method in table if method in ("GET", "PUT")][::20]
    for login, requests in (
        (None, every_method(table)),
        (UNKNOWN, once(table) if target.answer("auth") == "mlflow" else some),
        (("admin", "a-wrong-password"), some),
        (("admin", ""), some[:3]),
        (("admin", "password1234"), some[:3]),  # CVE-2026-2635: MLflow's own default
    ):
        # After ten wrong passwords nothing is checked for a while; what asks for none is answered as ever.
        wanted = {401} if login is None else {401, 429}
        for (path, method), answer in walk(target, requests, login).items():
            assert SECRET not in answer.text, f"{method} {path} as {login} shows what is hidden"
            if target.answer("auth") == "mlflow" and path in PUBLIC:
                continue
            known = wanted | {404} if path in ("/healthz", "/metrics", "/health") else wanted
            assert answer.status in known or refused_page(answer), f"{method} {path} as {login}: {answer.status}"
    alive(target)


def test_every_run_attacks_every_login_and_every_proxy() -> None:
    """What only `make test-all` attacks are further pairs of both."""
    for question in ("auth", "reverse_proxy"):
        every = {mode[question] for mode in modes()}
        assert {mode[question] for mode in modes() if (mode["auth"], mode["reverse_proxy"]) in ALWAYS} == every


def refused_page(answer: Answer) -> bool:
    """Whether a page of single sign-on is all that came back."""
    return answer.status in (302, 303, 403)


def test_a_user_without_rights(target: Target, request: pytest.FixtureRequest) -> None:
    """By no route does the stranger read the admin's things or change them; docs/routes.md says what came back."""
    if target.answer("auth") != "mlflow":
        return
    table = routes(target)
    before = seen_by_admin(target)
    assert SECRET in before and "271828" in before
    found = walk(target, table, STRANGER)
    for (path, method), answer in found.items():
        assert SECRET not in answer.text and "271828" not in answer.text, f"{method} {path} shows what is hidden"
        if 200 <= answer.status < 300:
            assert plain(path) in OPEN or path in PUBLIC, f"{method} {path}: {answer.status} {answer.text[:200]}"
        if answer.status >= 500:
            known = re.search("disabled|not enabled|NOT_IMPLEMENTED", answer.text)
            assert known, f"{method} {path}: {answer.status} {answer.text[:200]}"
        assert "Traceback" not in answer.text, f"{method} {path}"
    assert seen_by_admin(target) == before, "the stranger has changed something"
    compare(document(table, walk(target, table, None), found), request)


def test_the_walk_would_have_found_something(target: Target) -> None:
    """The same requests, sent as admin, read the prey by many routes, and the last one changes it."""
    if target.answer("auth") != "mlflow":
        return
    table = [(path, method) for path, method in once(routes(target)) if method == "GET"]
    found = walk(target, table, target.admin)
    reading = {plain(path) for (path, _), answer in found.items() if SECRET in answer.text or "271828" in answer.text}
    assert len(reading) >= 20, sorted(reading)
    before = seen_by_admin(target)
    assert attack(target, "/api/2.0/mlflow/runs/set-tag", "POST", target.admin).status == 200
    assert seen_by_admin(target) != before


def plain(path: str) -> str:
    """Return a path without the API's name and version, which several routes share."""
    return re.sub(r"^/(ajax-)?api/\d\.0", "", path)


def seen_by_admin(it: Target) -> str:
    """Return all that the admin reads of the prey."""
    prey = it.prey
    exp, run_id, trace = prey["experiment_id"], prey["run_id"], prey["trace_id"]
    asked = [
        f"/api/2.0/mlflow/experiments/get?experiment_id={exp}",
        f"/api/2.0/mlflow/runs/get?run_id={run_id}",
        f"/api/2.0/mlflow/artifacts/list?run_id={run_id}",
        f"/api/2.0/mlflow-artifacts/artifacts/{prey['artifact_path']}",
        f"/get-artifact?run_uuid={run_id}&path=secret.txt",
        f"/api/2.0/mlflow/registered-models/get?name={prey['registered']}",
        f"/api/2.0/mlflow/registered-models/get?name={prey['prompt']}",
        f"/api/2.0/mlflow/model-versions/get?name={prey['registered']}&version=1",
        f"/api/2.0/mlflow/logged-models/{prey['model_id']}",
        f"/api/3.0/mlflow/traces/{trace}",
        f"/api/3.0/mlflow/datasets/{prey['dataset_id']}",
        f"/api/3.0/mlflow/datasets/{prey['dataset_id']}/records",
        f"/api/3.0/mlflow/scorers/list?experiment_id={exp}",
        f"/api/3.0/mlflow/issues/{prey['issue_id']}",
        f"/api/3.0/mlflow/label-schemas/get?schema_id={prey['schema_id']}",
        f"/api/3.0/mlflow/review-queues/get?queue_id={prey['queue_id']}",
        f"/api/3.0/mlflow/mcp-servers/{prey['mcp']}",
        f"/api/3.0/mlflow/gateway/secrets/get?secret_id={prey['secret_id']}",
        f"/api/3.0/mlflow/gateway/endpoints/get?endpoint_id={prey['endpoint_id']}",
        "/api/2.0/mlflow/webhooks",
        "/api/2.0/mlflow/users/list",
        "/api/3.0/mlflow/roles/list",
    ]
    answers = [it.mlflow("GET", path, it.admin) for path in asked]
    bad = [
        (path, answer.status) for path, answer in zip(asked, answers, strict=True) if answer.status not in (200, 404)
    ]
    assert not bad, bad
    answers.append(it.mlflow("GET", metrics(run_id), it.admin))
    # The database gives back tags in any order.
    return "\n".join(sorted(word for answer in answers for word in re.split(r"[\s,{}\[\]]+", answer.text)))


def metrics(run_id: str) -> str:
    """Return the path of a run's metric."""
    return f"/api/2.0/mlflow/metrics/get-history?run_id={run_id}&metric_key=metric"


# --- the table in the docs

HEAD = """\
# Every route, and who gets through

Written by `tests/e2e/test_attacks.py`, which walks the routes of a running server with `auth=mlflow`; do not edit.
`{api,ajax-api}` stands for both names under which MLflow registers a route. *Nobody* sends no password. *No rights* is
a user whom nobody has given a permission, and who asks for an admin's experiments, runs, models, traces and so on by
their real names. With `auth=basic` nobody gets past the proxy without a login, and who is let in may do everything.
`/health` is left out: inside the stack it is open, and a proxy does not pass it on.

| answer | means |
| --- | --- |
| 401, 403 | refused: a login, or a permission, is asked for |
| 400, 404, 422 | nothing was read or changed; the request has no meaning, or the file it asks for does not exist |
| 200 | answered; the last column says with what |
| 5xx | MLflow has no answer: workspaces and jobs are off |

The table has what is not 401 for nobody and 403 for a user without rights.

"""


def document(table: list[tuple[str, str]], nobody: dict, stranger: dict) -> str:
    """Return the page: the routes that are open to somebody, and all others by name."""
    opened, closed = [], {}
    for path, method in table:
        if path in ("/health", "/healthz", "/metrics"):
            continue  # a proxy keeps them inside
        pair = (nobody[path, method].status, stranger[path, method].status)
        name = re.sub(r"^/(ajax-)?api(/\d\.0)", r"/{api,ajax-api}\2", path)
        if path.startswith(("/api/", "/ajax-api/")):
            twin = re.sub(r"^/(ajax-)?api/", "/api/" if path.startswith("/ajax") else "/ajax-api/", path)
            name = name if (twin, method) in table else path
        if pair == (401, 403):
            closed.setdefault(name, set()).add(method)
        else:
            why = PUBLIC.get(path) or (OPEN.get(plain(path)) if pair[1] == 200 else "") or ""
            row = f"| `{name}` | {method} | {pair[0]} | {pair[1]} | {why} |"
            if row not in opened:
                opened.append(row)
    lines = [f"| `{name}` | {', '.join(sorted(methods))} |" for name, methods in sorted(closed.items())]
    return (
        HEAD
        + "| route | method | nobody | no rights | what is in it |\n| --- | --- | --- | --- | --- |\n"
        + "\n".join(opened)
        + "\n\n## Refused: 401 for nobody, 403 without rights\n\n| route | methods |\n| --- | --- |\n"
        + "\n".join(lines)
        + "\n"
    )


def compare(text: str, request: pytest.FixtureRequest) -> None:
    """Compare the page with what was seen, or write it."""
    if request.config.getoption("--golden-update"):
        ROUTES.write_text(text)
    known = ROUTES.read_text() if ROUTES.exists() else ""
    changes = difflib.unified_diff(known.splitlines(), text.splitlines(), "docs/routes.md", "seen", lineterm="", n=0)
    assert known == text, "\n".join(["look, then --golden-update:", *changes])


# --- paths


@pytest.mark.parametrize(
    "tricked",
    [
        "//api/2.0/mlflow/experiments/search",
        "/api//2.0/mlflow/experiments/search",
        "/static-files/../api/2.0/mlflow/experiments/search",
        "/static-files/..%2fapi/2.0/mlflow/experiments/search",
        "/static-files/%2e%2e/api/2.0/mlflow/experiments/search",
        "/static-files;/../api/2.0/mlflow/experiments/search",
        "/API/2.0/mlflow/experiments/search",
        "/health/../api/2.0/mlflow/experiments/search",
        "/health;/api/2.0/mlflow/experiments/search",
        "/api/2.0/mlflow/experiments/search;.css",
        "/api/2.0/mlflow/experiments/search/.",
        "/api/2.0/mlflow/experiments%2fsearch",
        "/%61pi/2.0/mlflow/experiments/search",
        "\\api\\2.0\\mlflow\\experiments\\search",
        "/static-files\\..\\api/2.0/mlflow/experiments/search",
        "/./api/2.0/mlflow/experiments/search",
        "/healthz/../graphql",
        "/api/2.0/mlflow/experiments/search%00",
        "/api/2.0/mlflow/experiments/search#/health",
        "/v1/../v1/traces",
        "/api/3.0/mlflow/server-info/../experiments/search",
        "/x/mlflow/server-info",
        "/static/../graphql",
    ],
)
def test_path_tricks(target: Target, tricked: str) -> None:
    """No spelling of a path gets past the login, and none out of the prefix."""
    prefix = target.prefix
    spellings = {prefix + tricked} | ({prefix + "x" + tricked, prefix + "/.." + tricked, tricked} if prefix else set())
    for path in spellings:
        answer = target.ask("GET", path + "?max_results=5")
        if target.answer("auth") != "none" or not path.startswith(prefix + "/"):
            assert '"experiments"' not in answer.text and answer.status != 500, (
                f"{path}: {answer.status} {answer.text[:200]}"
            )
            page = b"<!doctype html>" in answer.body.lower() and b"mlflow" in answer.body.lower()
            assert answer.status >= 300 and not page, f"{path}: {answer.status} {answer.text[:200]}"
        assert "Traceback" not in answer.text


# --- names


@pytest.mark.parametrize(
    "headers",
    [
        {"X_Forwarded_For": "127.0.0.1"},
        {"X_Real_IP": "127.0.0.1"},
        {"Forwarded": "for=127.0.0.1"},
        {"X_Original_URL": "/health"},
        {"X_Rewrite_URL": "/health"},
        {"X_Forwarded_User": "admin"},
        {"X_Forwarded_Prefix": "/static"},
        {"X_Forwarded_Proto": "https"},
        {"X_HTTP_Method_Override": "GET"},
        {"X_Remote_User": "admin"},
        {"Remote_User": "admin"},
        {"X_Auth_Request_User": "admin"},
        {"X_MLflow_Authorization": basic(("admin", "x"))},
    ],
)
def test_headers_that_lie(target: Target, headers: dict[str, str]) -> None:
    """Nobody becomes somebody, or another path, by a header; the assistant, for this machine only, stays shut."""
    answer = target.mlflow("GET", SEARCH, **headers)
    assert (answer.status == 200) == (target.answer("auth") == "none"), answer.status
    assistant = "/ajax-api/3.0/mlflow/assistant/providers/claude_code/health"
    assert target.mlflow("GET", assistant, target.admin, **headers).status == 403
    for name in ("X_Forwarded_Host", "X_Host"):
        answer = target.mlflow("GET", "/", target.admin, **{name: "evil.example.net"})
        assert "evil.example.net" not in answer.text + str(answer.headers)


@pytest.mark.parametrize(
    "host", ["evil.example.net", "localhost.evil.net", "127.0.0.1.evil.net", "evil.net:5000", "[::1]:1", "a b", ""]
)
def test_dns_rebinding(target: Target, host: str) -> None:
    """Another name than the stack's is refused, for everything that has data."""
    for path in (SEARCH, "/graphql", "/v1/traces", "/api/2.0/mlflow-artifacts/artifacts", "/get-artifact"):
        answer = target.mlflow("GET", path, target.admin, Host=host)
        assert answer.status in (400, 403, 404, 421), f"{host!r} {path}: {answer.status}"


@pytest.mark.parametrize(
    "origin", ["http://evil.example.net", "null", "http://localhost.evil.net", "https://127.0.0.1.nip.io"]
)
def test_other_peoples_pages(target: Target, origin: str) -> None:
    """A page of somebody else changes nothing, by no route, and reads nothing."""
    for path in (
        "/api/2.0/mlflow/experiments/create",
        "/graphql",
        "/v1/traces",
        "/ajax-api/2.0/mlflow/upload-artifact",
        "/gateway/mlflow/v1/chat/completions",
    ):
        for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded"):
            answer = target.mlflow(
                "POST", path, target.admin, body={"name": "forged"}, Origin=origin, Content_Type=kind
            )
            assert answer.status == 403, f"{path} {kind}: {answer.status}"
    answer = target.mlflow("GET", SEARCH, target.admin, Origin=origin)
    assert answer.headers.get("access-control-allow-origin") not in ("*", origin)


def test_clickjacking_and_sniffing(target: Target) -> None:
    """No page shows the user interface in a frame, and an artifact is a download, not a page."""
    for path in ("/", SEARCH, "/graphql"):
        headers = target.mlflow("GET", path, target.admin).headers
        assert headers.get("x-frame-options") == "SAMEORIGIN" and headers.get("x-content-type-options") == "nosniff", (
            path
        )
    path = "/api/2.0/mlflow-artifacts/artifacts/0/page/artifacts/evil.html"
    body = b"<script>alert(1)</script>"
    assert target.mlflow("PUT", path, target.admin, body=body).status == 200
    answer = target.mlflow("GET", path, target.admin)
    assert answer.body == body and answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"].startswith("attachment"), answer.headers


# --- bytes


def smuggled(host: str, path: str) -> dict[str, bytes]:
    """Return requests of which two servers in a row might disagree where they end; GET /smuggled hides in them."""
    inner = f"GET {path}/smuggled HTTP/1.1\r\nHost: {host}\r\n\r\n"
    size = len(inner)
    head = f"POST {path}/graphql HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    chunked = f"0\r\n\r\n{inner}"
    samples = {
        "CL.TE": head + f"Content-Length: {len(chunked)}\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}",
        "TE.CL": head + f"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n{size:x}\r\n{inner}\r\n0\r\n\r\n",
        "TE.TE": head + f"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\nContent-Length: 4\r\n\r\n{chunked}",
        "TE xchunked": head + f"Transfer-Encoding: xchunked\r\nContent-Length: {len(chunked)}\r\n\r\n{chunked}",
        "TE space": head + f"Transfer-Encoding : chunked\r\nContent-Length: {len(chunked)}\r\n\r\n{chunked}",
        "TE folded": head + f"Transfer-Encoding:\r\n chunked\r\nContent-Length: {len(chunked)}\r\n\r\n{chunked}",
        "TE vertical tab": head + f"Transfer-Encoding: \x0bchunked\r\nContent-Length: {len(chunked)}\r\n\r\n{chunked}",
        "CL.CL": head + f"Content-Length: 2\r\nContent-Length: {size + 2}\r\n\r\n{{}}{inner}",
        "CL plus": head + f"Content-Length: +{size + 2}\r\n\r\n{{}}{inner}",
        "bare LF": head + f"X: y\nContent-Length: {size + 2}\r\n\r\n{{}}{inner}",
        "header in value": head
        + f"X: a\rTransfer-Encoding: chunked\r\nContent-Length: {len(chunked)}\r\n\r\n{chunked}",
        "HTTP/1.0 TE": head.replace("1.1", "1.0", 1) + f"Transfer-Encoding: chunked\r\n\r\n{chunked}",
        "chunk extension": head + f"Transfer-Encoding: chunked\r\n\r\n2;\n{size:x}\r\n{{}}\r\n{chunked}",
    }
    return {name: sample.encode("latin-1") for name, sample in samples.items()}


def test_request_smuggling(target: Target) -> None:
    """What hides in a body is answered to its sender at most, like any second request; nobody's answers mix."""

    def smuggle(name: str, sample: bytes) -> None:
        received = target.raw(sample)
        statuses = re.findall(rb"HTTP/1\.[01] (\d{3})", received)
        assert len(statuses) <= 2 and b" 500 " not in received and b"Traceback" not in received, (
            f"{name}: {received[:300]!r}"
        )
        if target.answer("auth") != "none":
            assert not [status for status in statuses if status.startswith(b"2")], f"{name}: {received[:300]!r}"
        # Whoever comes next on the proxy's kept connections gets an answer to their own question.
        for _ in range(3):
            target.hang_up()
            answer = target.mlflow("GET", SEARCH, target.admin)
            assert answer.status == 200 and "experiments" in answer.text, f"after {name}: {answer.status}"

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(smuggle, *zip(*smuggled(target.host, target.prefix).items(), strict=True)))


def test_pipelined_requests_are_answered_in_order(target: Target) -> None:
    """The next person's answer is never that of the one before: kept connections to the server do not mix."""
    one = f"GET {target.prefix}/version HTTP/1.1\r\nHost: {target.host}\r\n\r\n".encode()
    received = target.raw(one * 2, seconds=30, silence=5)
    assert received.count(b"HTTP/1.1 ") == 2, received


ESCAPES = (
    "../../../../etc/passwd",
    "..%2f..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "..%252f..%252fetc%252fpasswd",
    "..\\..\\..\\etc\\passwd",
    "..%5c..%5c..%5cetc%5cpasswd",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "C:/windows/win.ini",
    "file:///etc/passwd",
    "file:%2f%2f%2fetc%2fpasswd",
    "1/../../../../etc/passwd",
    "1/%2e%2e%2f%2e%2e%2f%2e%2e%2fetc/passwd",
    "....//....//etc/passwd",
    "x%00/etc/passwd",
    "1%0a/../../etc/passwd",
    "..;/..;/etc/passwd",
    "%c0%ae%c0%ae/etc/passwd",
    "#/etc/passwd",
    "http://127.0.0.1:5000/health",
)


MARKER = b"escaped-marker"
UPLOAD = "/ajax-api/2.0/mlflow/upload-artifact"
EXPERIMENT = "/api/2.0/mlflow/experiments/get-by-name"


def run_of(it: Target, name: str, location: str = "") -> str:
    """Return the id of a run in an experiment of this name, or "" if the server refuses such an experiment."""
    body = {"name": name, "artifact_location": location} if location else {"name": name}
    made = it.mlflow("POST", "/api/2.0/mlflow/experiments/create", it.admin, body=body)
    if made.status != 200:
        return ""
    body = {"experiment_id": json.loads(made.text)["experiment_id"]}
    made = it.mlflow("POST", "/api/2.0/mlflow/runs/create", it.admin, body=body)
    return json.loads(made.text)["run"]["info"]["run_id"] if made.status == 200 else ""


def escapes(run_id: str, bad: str) -> list[tuple[str, str, bytes | dict | None]]:
    """Return the requests that would leave the artifacts, or a run's own, by this spelling of a path."""
    query = bad.replace("%", "%25") if "%" in bad else bad.replace("#", "%23")
    api = [f"/{name}/2.0/mlflow-artifacts" for name in ("api", "ajax-api")]
    return [
        *(("GET", f"{base}/artifacts/{bad}", None) for base in api),
        *(("PUT", f"{base}/artifacts/{bad}", MARKER) for base in api[:1]),
        *(("DELETE", f"{base}/artifacts/{bad}", None) for base in api[:1]),
        ("GET", f"{api[0]}/artifacts?path={bad}", None),
        ("GET", f"{api[0]}/artifacts?path={query}", None),
        ("GET", f"{api[0]}/presigned/{bad}", None),
        ("POST", f"{api[0]}/mpu/create/{bad}", {"path": bad, "num_parts": 1}),
        ("GET", f"/get-artifact?run_uuid={run_id}&path={bad}", None),
        ("GET", f"/get-artifact?run_uuid={run_id}&path={query}", None),
        ("GET", f"/api/2.0/mlflow/artifacts/list?run_id={run_id}&path={query}", None),
        ("POST", f"{UPLOAD}?run_uuid={run_id}&path={bad}", MARKER),
        ("POST", f"{UPLOAD}?run_uuid={run_id}&path={query}", MARKER),
        ("GET", f"/model-versions/get-artifact?name=x&version=1&path={bad}", None),
        ("GET", f"/ajax-api/2.0/mlflow/get-trace-artifact?request_id={bad}", None),
    ]


def test_artifact_paths_stay_in_their_root(target: Target) -> None:
    """No spelling of a path leaves the artifacts, for reading, writing, listing, deleting or signing."""
    login = target.admin
    mine, other = run_of(target, "escapes"), run_of(target, "not to be reached")
    for run_id, kept in ((mine, b"mine"), (other, b"kept")):
        answer = target.mlflow("POST", f"{UPLOAD}?run_uuid={run_id}&path=kept.txt", login, body=kept)
        assert answer.status == 200, answer.text
        assert target.mlflow("GET", f"/get-artifact?run_uuid={run_id}&path=kept.txt", login).body == kept

    def escape(method: str, path: str, body: bytes | dict | None) -> None:
        answer = target.mlflow(method, path, login, body=body)
        assert "root:" not in answer.text and "Traceback" not in answer.text, f"{method} {path}: {answer.text[:200]}"
        assert answer.status not in (502, 504), f"{method} {path}: {answer.status} {answer.text[:300]}"
        if method == "GET" and answer.status == 200:
            # What follows # does not arrive, and the path is empty: that is the root itself, or the run's.
            # Folders may have odd names: what an upload has put into the run's own can be read there.
            listed = "path=#" not in path
            assert answer.text.strip().startswith("{") or answer.body == MARKER, f"{path}: {answer.text[:200]}"
            assert not listed or '"is_dir"' not in answer.text, f"{path}: {answer.text[:200]}"
        # MLflow's own word for a path that it, or the store, does not like or have, by some routes.
        words = r"Invalid artifact path|NUL|An error occurred \(40[04]\)|bad components|unsupported characters"
        clumsy = re.search(words, answer.text)
        assert answer.status != 500 or clumsy, f"{method} {path}: {answer.text[:300]}"

    others = [f"../../{other}/artifacts/kept.txt", f"..%2f..%2f{other}%2fartifacts%2fkept.txt"]
    with ThreadPoolExecutor(6) as threads:
        tries = [one for bad in (*ESCAPES, *others) for one in escapes(mine, bad)]
        # What is read while it goes, or another takes its place, is cut off, and rightly.
        for methods in (("PUT", "POST"), ("GET",), ("DELETE",)):
            list(threads.map(escape, *zip(*(one for one in tries if one[0] in methods), strict=True)))
    answer = target.mlflow("GET", f"/get-artifact?run_uuid={other}&path=kept.txt", login)
    assert answer.body == b"kept", "another run's file was written over"
    # What was taken has come to no place of the server's that is not for artifacts.
    search = "grep -rl escaped-marker / --exclude-dir=proc --exclude-dir=sys 2>/dev/null || true"
    found = target.stack.compose("exec", "-T", "mlflow", "sh", "-c", search).split()
    stored = [path for path in found if path.startswith("/data/artifacts/")]
    assert found == stored and bool(stored) == (target.answer("artifact_store") == "local"), found


# Prints what is stored under any name that ends with the given word.
STORED = """
import os, pathlib, sys
from stackops import settings
root = settings.artifact_uri(settings.adopt())
if root.startswith("s3://"):
    import boto3
    bucket = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"]).list_objects_v2(
        Bucket=root.removeprefix("s3://").split("/")[0])
    names = [one["Key"] for one in bucket["Contents"]]
else:
    names = [str(path) for path in pathlib.Path(root).rglob("*") if path.is_file()]
print(*(name for name in names if name.endswith("/" + sys.argv[1])))
"""
LOCATIONS = (
    "file:///etc",
    "relay:file:///etc",
    "/etc",
    "s3://other-bucket",
    "mlflow-artifacts:/../..",
    "relay:s3://other",
)


def test_artifact_locations_stay_in_their_root(target: Target) -> None:
    """No experiment has its artifacts where the server's own files are, or in somebody else's bucket."""
    for location in LOCATIONS:
        if not (run_id := run_of(target, f"escape {location}", location)):
            continue
        for path in (
            f"/api/2.0/mlflow/artifacts/list?run_id={run_id}",
            f"/get-artifact?run_uuid={run_id}&path=passwd",
            f"/get-artifact?run_uuid={run_id}&path=../../etc/passwd",
        ):
            answer = target.mlflow("GET", path, target.admin)
            listed = answer.status == 200 and "passwd" in answer.text  # an error may repeat what was asked for
            assert "root:" not in answer.text and not listed, f"{location} {path}: {answer.text[:200]}"
        name = f"landed-{run_id}"
        answer = target.mlflow("POST", f"{UPLOAD}?run_uuid={run_id}&path={name}", target.admin, body=MARKER)
        stored = target.inside(STORED, name).split()
        if answer.status == 200:  # a spelling of the root itself: then it lies where this run keeps its artifacts
            assert len(stored) == 1 and f"/{run_id}/artifacts/" in f"/{stored[0]}", f"{location}: {stored}"
        else:
            assert answer.status >= 400 and not stored, f"{location}: {answer.status} {answer.text[:200]} {stored}"


FOREIGN = ("ftp", "FTP", "sftp", "http", "https", "hdfs", "viewfs", "mlflow-artifacts", "r2", "b2", "abfss", "dbfs")
FOREIGN += ("wasbs", "gs", "databricks", "relay:ftp", "relay:http")


def test_foreign_schemes_make_the_server_call_nobody(target: Target) -> None:
    """Whoever names a host as an experiment's place, or a model's, does not make the server fetch from there."""
    with socket.create_server((outside.gateway(), 0)) as listener:
        address = f"{outside.gateway()}:{listener.getsockname()[1]}"
        reach = "import socket, sys; socket.create_connection(sys.argv[1].split(':'), 10).close()"
        target.inside(reach, address)
        listener.settimeout(10)
        listener.accept()[0].close()  # it would be heard
        listener.settimeout(0)
        kept = []
        for scheme in FOREIGN:
            for at in (address, f"box@{address}"):
                uri, name = f"{scheme}://{at}/x", re.sub(r"\W", "-", f"foreign-{scheme}-{at}")
                if run_id := run_of(target, name, uri):
                    kept.append(scheme)
                    for path in (
                        f"/api/2.0/mlflow/artifacts/list?run_id={run_id}",
                        f"/get-artifact?run_uuid={run_id}&path=x",
                    ):
                        answer = target.mlflow("GET", path, target.admin)
                        assert '"is_dir"' not in answer.text and "Traceback" not in answer.text, f"{uri} {path}"
                        assert path.startswith("/api") or answer.status >= 400, f"{uri} {path}: {answer.status}"
                    target.mlflow("POST", f"{UPLOAD}?run_uuid={run_id}&path=x", target.admin, body=MARKER)
                target.mlflow("POST", "/api/2.0/mlflow/registered-models/create", target.admin, body={"name": name})
                body = {"name": name, "source": uri}
                made = target.mlflow("POST", "/api/2.0/mlflow/model-versions/create", target.admin, body=body)
                if made.status == 200:
                    kept.append(scheme)
                    query = f"name={name}&version=1&path=x"
                    answer = target.mlflow("GET", f"/model-versions/get-artifact?{query}", target.admin)
                    assert answer.status >= 400 and "Traceback" not in answer.text, f"{uri}: {answer.text[:200]}"
                with pytest.raises(BlockingIOError):
                    print(uri, listener.accept()[1])
        # The others name no host: a bucket, or a service that the server has no key for.
        assert set(kept) <= {"dbfs", "wasbs", "gs", "databricks", "relay:ftp", "relay:http"}, kept


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"null", b"\xff\xfe", b'"x"', b"1", b"{" * 5000, b'{"name": {"a": 1}}'],
)
def test_bad_json(target: Target, body: bytes) -> None:
    """A body that is no JSON, or another, is a fault of the sender and told so; no traceback comes back."""
    for method, path in (
        ("POST", "/api/2.0/mlflow/experiments/search"),
        ("POST", "/api/2.0/mlflow/runs/log-batch"),
        ("PATCH", "/api/2.0/mlflow/registered-models/update"),
        ("POST", "/api/3.0/mlflow/traces"),
        ("POST", "/v1/traces"),
        ("POST", "/graphql"),
        ("POST", "/ajax-api/3.0/jobs/search"),
        ("POST", "/gateway/mlflow/v1/chat/completions"),
    ):
        answer = target.mlflow(method, path, target.admin, body=body)
        assert "Traceback" not in answer.text and 'File "' not in answer.text, f"{path}: {answer.text[:300]}"
        assert answer.status < 500 or answer.status in (501, 503), (
            f"{method} {path}: {answer.status} {answer.text[:300]}"
        )


def test_a_huge_header(target: Target) -> None:
    """A header of 1 MB is refused, and the server lives."""
    data = f"GET {target.prefix}{SEARCH} HTTP/1.1\r\nHost: {target.host}\r\nX: {'a' * (1 << 20)}\r\n\r\n".encode()
    received = target.raw(data)
    assert not received or re.match(rb"HTTP/1\.1 4\d\d", received), received[:200]
    alive(target)


def memory(it: Target) -> int:
    """Return the bytes of memory that the server's processes have, without the kernel's caches."""
    script = (
        "import re, pathlib; print(sum(int(m[1]) for f in pathlib.Path('/proc').glob('[0-9]*/status') "
        "if (m := re.search(r'VmRSS:\\s+(\\d+)', f.read_text()))))"
    )
    return int(it.inside(script)) << 10


def test_a_body_of_10_gb(target: Target) -> None:
    """Nobody fills the memory: a giant is refused as soon as it is announced, or has come too far; others work on."""
    before = memory(target)
    path = f"{target.prefix}/api/2.0/mlflow/runs/create"
    head = f"POST {path} HTTP/1.1\r\nHost: {target.host}\r\nContent-Type: application/json\r\n"
    size, chunk = f"Content-Length: {10 << 30}\r\n\r\n", b"x" * (1 << 20)
    chunked = f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n"
    for name, start, piece in (
        ("announced", head + size, chunk),
        ("in pieces", head + "Transfer-Encoding: chunked\r\n\r\n", chunked),
    ):
        sent, received = 0, b""
        with target.connect() as connection:
            connection.sendall(start.encode())
            try:
                while not received and sent < 300:
                    connection.sendall(piece)
                    sent += 1
                    if select.select([connection], [], [], 5 if sent == 1 and name == "announced" else 0)[0]:
                        received = connection.recv(1000)
                        break
            except OSError:
                pass  # refused and closed
        print(name, sent, "MiB sent:", received[:100])
        # A proxy answers 502 if the server has hung up before the proxy has read why.
        refused = rb"HTTP/1\.1 (401|413) " if target.answer("reverse_proxy") == "none" else rb"HTTP/1\.1 (401|413|502) "
        assert re.match(refused, received) or not received, f"{name}: {received[:300]!r}"
        assert sent < 300, f"{name}: nobody stopped it"
    assert memory(target) - before < 400 << 20, "it was kept in memory"
    alive(target)


def test_slow_clients(target: Target) -> None:
    """200 clients that never finish their request do not keep others from working."""
    slow: list[socket.socket] = []
    try:
        for number in range(200):
            connection = target.connect()
            slow.append(connection)
            words = f"POST {target.prefix}/api/2.0/mlflow/runs/create HTTP/1.1\r\nHost: {target.host}\r\n"
            if number % 2:
                words += "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
            connection.sendall(words.encode())
        times = []
        with ThreadPoolExecutor(2) as two:

            def work(_: int) -> float:
                target.hang_up()
                begun = time.monotonic()
                alive(target)
                return time.monotonic() - begun

            times = list(two.map(work, range(20)))
        assert statistics.quantiles(times, n=20)[-1] < 10, sorted(times)
    finally:
        for connection in slow:
            connection.close()
    alive(target)


# --- health and metrics, from inside and from outside

FROM_INSIDE = """
import urllib.error, urllib.request
for path in ("/health", "/metrics"):
    try:
        print(path, urllib.request.urlopen("http://mlflow:5000" + path, timeout=10).status)
    except urllib.error.HTTPError as error:
        print(path, error.code)
"""


def test_health_is_for_the_inside(target: Target) -> None:
    """Inside the stack health asks for no login; from outside there is neither health nor metrics behind a proxy."""
    assert "/health 200" in target.inside(FROM_INSIDE)
    for path in ("/health", "/metrics", "/healthz"):
        answers = [target.mlflow("GET", path, login) for login in (None, target.admin)]
        if target.answer("reverse_proxy") != "none":
            assert {answer.status for answer in answers} <= {401, 404}, path
        elif path != "/health":
            assert {answer.status for answer in answers} <= {401, 403, 404}, path


# --- from the networks

PORTS = """
import json, socket, sys
found = []
for host in sys.argv[1].split(","):
    for port in map(int, sys.argv[2].split(",")):
        try:
            socket.create_connection((host, port), 1).close()
            found.append(f"{host}:{port}")
        except OSError:
            pass
print(json.dumps(found))
"""
KNOWN_PORTS = (
    "22,80,443,2019,2379,5000,5432,7333,8080,8081,8111,8333,8443,8888,9000,9001,9090,9333,17777,18080,18333,18888,19333"
)


def neighbour(it: Target, network: str, script: str, *words: str) -> str:
    """Run a Python program in a container that is on one of the stack's networks, and is none of the stack's.

    Or, with `container:` and an id, as if in that container.
    """
    image = it.stack.settings()["MLFLOW_IMAGE"]
    done = run(
        "docker",
        "run",
        "--rm",
        "--network",
        network if ":" in network else f"{it.stack.name}_{network}",
        "--entrypoint",
        "python",
        image,
        "-c",
        script,
        *words,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_open_ports(target: Target) -> None:
    """Each container listens on what it is there for; from the edge network neither database nor store is reached."""
    services = [name for name in ("mlflow", "nginx", "caddy", "postgres", "object-store") if target.stack.has(name)]
    edge = json.loads(neighbour(target, "edge", PORTS, ",".join(services), KNOWN_PORTS))
    proxy = {"nginx:8080", "nginx:8333", "nginx:9000", "nginx:8443", "nginx:443", "nginx:80"}
    allowed = {"mlflow:5000"} | proxy | {name.replace("nginx", "caddy") for name in proxy}
    assert set(edge) <= allowed and "mlflow:5000" in edge, edge
    if target.answer("reverse_proxy") == "caddy":  # its admin interface is off, even for itself
        caddy = f"container:{target.stack.container('caddy')}"
        assert json.loads(neighbour(target, caddy, PORTS, "127.0.0.1", "2019,8080")) == ["127.0.0.1:8080"]
    if target.answer("backend") == "postgres":
        data = set(json.loads(neighbour(target, "data", PORTS, "postgres,object-store", KNOWN_PORTS)))
        store = {"seaweedfs": {"object-store:8333", "object-store:18333"}, "minio": {"object-store:9000"}}
        assert data == {"postgres:5432"} | store[target.answer("artifact_store")], data
        # From where the data is no way leads out: not even to this machine.
        with socket.create_server((outside.gateway(), 0)) as listener:
            port = str(listener.getsockname()[1])
            reached = [neighbour(target, name, PORTS, outside.gateway(), port).strip() for name in ("edge", "data")]
            assert reached == [f'["{outside.gateway()}:{port}"]', "[]"], reached


DEFAULTS = """
import json, sys
import boto3, psycopg2
from botocore import UNSIGNED
from botocore.config import Config
found = []
for user in ("postgres", "mlflow", "root", "admin"):
    for password in ("", "postgres", "mlflow", "password", "admin", user):
        for database in ("postgres", "mlflow", "template1"):
            try:
                who = {"host": "postgres", "user": user, "password": password, "dbname": database}
                psycopg2.connect(**who, connect_timeout=5).close()
                found.append(f"{user}:{password}@{database}")
            except psycopg2.OperationalError:
                pass
for key, secret in (("minioadmin", "minioadmin"), ("admin", "admin"), ("minio", "minio123"), ("any", "any"), ("", "")):
    given = {"aws_access_key_id": key, "aws_secret_access_key": secret} if key else {}
    config = Config(retries={"total_max_attempts": 1}, **({} if key else {"signature_version": UNSIGNED}))
    s3 = boto3.client("s3", endpoint_url=sys.argv[1], region_name="us-east-1", config=config, **given)
    for name, attempt in {
        "buckets": lambda: s3.list_buckets()["Buckets"],
        "objects": lambda: s3.list_objects_v2(Bucket="mlflow"),
        "write": lambda: s3.put_object(Bucket="mlflow", Key="x", Body=b"x"),
    }.items():
        try:
            if attempt():
                found.append(f"{key}: {name}")
        except Exception:
            pass
print(json.dumps(found))
"""


def test_default_accounts(target: Target) -> None:
    """Neither the database nor the store lets in whoever knows what their makers' documentation says."""
    if target.answer("backend") != "postgres":
        return
    port = {"seaweedfs": 8333, "minio": 9000}[target.answer("artifact_store")]
    assert json.loads(neighbour(target, "data", DEFAULTS, f"http://object-store:{port}")) == []


def grpc(**fields: bytes | dict) -> bytes:
    """Return a message of fields 1, 2, 3 and so on, in the order given; each is bytes or a message."""
    parts = [value if isinstance(value, bytes) else grpc(**value) for value in fields.values()]
    return b"".join(bytes([number << 3 | 2, len(part)]) + part for number, part in enumerate(parts, 1))


def test_the_store_takes_no_orders_by_grpc(target: Target) -> None:
    """Beside S3 SeaweedFS listens for orders who may come in: nobody on the network gets a key by one."""
    if target.answer("artifact_store") != "seaweedfs" or target.answer("backend") != "postgres":
        return
    key = {"access_key": b"INTRUDERKEY", "secret_key": b"an-intruders-secret", "status": b"Active"}
    message = grpc(identity={"name": b"intruder", "credentials": key, "actions": b"Admin"})
    address = "http://object-store:18333/messaging_pb.SeaweedS3IamCache/PutIdentity"
    curl = ("exec", "-T", "object-store", "curl", "-sS", "-i")
    order = ("--http2-prior-knowledge", "-H", "Content-Type: application/grpc", "-H", "TE: trailers")
    framed = (b"\0" + len(message).to_bytes(4, "big") + message).decode()
    answer = target.stack.compose(*curl, *order, "--data-binary", "@-", address, input=framed)
    assert "grpc-status: 16" in answer, answer  # UNAUTHENTICATED
    sign = ("--aws-sigv4", "aws:amz:us-east-1:s3", "--user", "INTRUDERKEY:an-intruders-secret")
    assert " 403 " in target.stack.compose(*curl, *sign, "http://object-store:8333/").splitlines()[0]


def test_method_names(target: Target) -> None:
    """Methods that nobody asked for change nothing: TRACE does not echo, CONNECT connects nowhere."""
    for method in ("TRACE", "CONNECT", "TRACK", "PROPFIND", "DEBUG", "get", "X" * 300):
        received = target.raw(
            f"{method} {target.prefix}{SEARCH} HTTP/1.1\r\nHost: {target.host}\r\nX-Mark: echoed\r\n\r\n".encode()
        )
        # Without a proxy `get` is read as GET, which everybody may send where nobody is asked for a login.
        same = method == "get" and target.answer("auth") == target.answer("reverse_proxy") == "none"
        bad = rb"HTTP/1\.1 5" if same else rb"HTTP/1\.1 (2|5)"
        assert b"echoed" not in received and not re.match(bad, received), f"{method}: {received[:200]!r}"
    assert set(METHODS) == {"GET", "POST", "PUT", "PATCH", "DELETE"}


# --- what others have found in MLflow; the table is in docs/security.md


@pytest.mark.parametrize(
    "url",
    ["http://169.254.169.254/latest", "https://169.254.169.254/", "https://127.0.0.1:5000/", "https://postgres:5432/"],
)
def test_webhooks_reach_nothing_inside(target: Target, url: str) -> None:
    """CVE-2026-2393: the server sends nothing to an address of its own networks, whoever asks for it."""
    body = {"name": "inside", "url": url, "events": [{"entity": "MODEL_VERSION", "action": "CREATED"}]}
    answer = target.mlflow("POST", "/api/2.0/mlflow/webhooks", target.admin, body=body)
    assert answer.status == 400 and "URL" in answer.text, answer.text


@pytest.mark.parametrize("source", ["file:///etc", "/etc", "file:///proc/self", "relay:file:///etc"])
def test_a_prompt_is_no_way_to_files(target: Target, source: str) -> None:
    """CVE-2026-2614, CVE-2026-2033: a version of a prompt that claims to lie in /etc is refused, or shows nothing."""
    name = f"prompt {source}"
    tags = [{"key": "mlflow.prompt.is_prompt", "value": "true"}, {"key": "mlflow.prompt.text", "value": "x"}]
    target.mlflow("POST", "/api/2.0/mlflow/registered-models/create", target.admin, body={"name": name, "tags": tags})
    body = {"name": name, "source": source, "tags": tags}
    target.mlflow("POST", "/api/2.0/mlflow/model-versions/create", target.admin, body=body)
    for path in ("passwd", "environ", "../etc/passwd"):
        query = f"name={name.replace(' ', '%20')}&version=1&path={path}"
        answer = target.mlflow("GET", f"/model-versions/get-artifact?{query}", target.admin)
        assert answer.status >= 400 and "root:" not in answer.text and "PATH=" not in answer.text, answer.text[:200]


KINDS = ("mlflow-artifacts:/{root}", "relay:/{root}", "{store}/{root}", "relay:{store}/{root}", "{account}/{root}")


def takes_nothing(target: Target, login: tuple[str, str], kind: str) -> None:
    """A model version of a user's own that claims to lie where somebody else's run keeps its artifacts is refused."""
    root = target.prey["artifact_path"].rsplit("/", 1)[0]
    store = target.inside("import os; print(os.environ['ARTIFACT_URI'])").strip()
    account = re.sub("@[^.]+", "@elsewhere", store)
    source, name = kind.format(root=root, store=store, account=account), re.sub(r"\W", "-", f"taken-{kind}")
    made = target.mlflow("POST", "/api/2.0/mlflow/registered-models/create", login, body={"name": name})
    assert made.status == 200, made.text[:300]
    body = {"name": name, "source": source}
    answer = target.mlflow("POST", "/api/2.0/mlflow/model-versions/create", login, body=body)
    assert answer.status == 400 and "Invalid model version source" in answer.text, answer.text[:300]
    query = f"name={quote(name)}&version=1&path=secret.txt"
    assert target.mlflow("GET", f"/model-versions/get-artifact?{query}", login).status >= 400


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_no_way_to_others_artifacts(target: Target, kind: str) -> None:
    """With MLflow's users; with the others everybody who gets in may read everything."""
    if target.answer("auth") == "mlflow":
        takes_nothing(target, STRANGER, kind)


def test_a_trace_is_no_way_to_others_artifacts(target: Target) -> None:
    """A trace of a user's own that claims to have its data where somebody else's is."""
    if target.answer("auth") != "mlflow":
        return
    root = target.prey["artifact_path"].rsplit("/", 1)[0]
    place = f"/api/2.0/mlflow-artifacts/artifacts/{root}/traces.json"
    spans = json.dumps({"spans": [], "note": SECRET}).encode()
    assert target.mlflow("PUT", place, target.admin, body=spans).status == 200

    def post(method: str, path: str, body: dict) -> Answer:
        return target.mlflow(method, path, STRANGER, body=body)

    made = post("POST", "/api/2.0/mlflow/experiments/create", {"name": "a stranger's traces"})
    experiment = json.loads(made.text)["experiment_id"]
    key = "mlflow.artifactLocation"
    tags = [{"key": key, "value": f"mlflow-artifacts:/{root}"}]
    body = {"experiment_id": experiment, "timestamp_ms": 1, "request_metadata": [], "tags": tags}
    made = post("POST", "/api/2.0/mlflow/traces", body)
    assert made.status == 200, made.text[:300]
    trace = json.loads(made.text)["trace_info"]["request_id"]
    ended = {"timestamp_ms": 2, "status": "OK", "request_metadata": [], "tags": tags}
    assert post("PATCH", f"/api/2.0/mlflow/traces/{trace}", ended).status == 200
    for version in ("2.0", "3.0"):
        answer = post("PATCH", f"/api/{version}/mlflow/traces/{trace}/tags", tags[0])
        assert answer.status == 400 and "immutable" in answer.text, answer.text[:300]
    known = target.mlflow("GET", f"/api/2.0/mlflow/traces/{trace}/info", STRANGER).text
    assert root not in known and key in known, known
    for path in (f"/ajax-api/{version}/mlflow/get-trace-artifact" for version in ("2.0", "3.0")):
        answer = target.mlflow("GET", f"{path}?request_id={trace}", STRANGER)
        assert answer.status in (400, 404) and SECRET not in answer.text, f"{path}: {answer.status} {answer.text[:300]}"


def test_a_place_below_others_runs(target: Target) -> None:
    """Whoever has an experiment's place below somebody else's run neither reads nor lists nor writes what is there."""
    if target.answer("auth") != "mlflow":
        return
    root = target.prey["artifact_path"].rsplit("/", 1)[0]

    def ask(method: str, path: str, body: dict | bytes | None = None) -> Answer:
        return target.mlflow(method, path, STRANGER, body=body)

    body = {"name": "a stranger's place", "artifact_location": f"mlflow-artifacts:/{root}"}
    experiment = json.loads(ask("POST", "/api/2.0/mlflow/experiments/create", body).text)["experiment_id"]
    made = ask("POST", "/api/2.0/mlflow/runs/create", {"experiment_id": experiment})
    run_id = json.loads(made.text)["run"]["info"]["run_id"]
    # MLflow's form for uploads puts a file where it would be without the place; every other way asks for a right on it.
    api, own = "/api/2.0/mlflow-artifacts", f"{root}/{run_id}/artifacts/secret.txt"
    for path in ("secret.txt", "../../secret.txt", "..%2f..%2fsecret.txt", "%2e%2e/%2e%2e/secret.txt"):
        ask("POST", f"{UPLOAD}?run_uuid={run_id}&path={path}", MARKER)
    for place in (own, f"{root}/secret.txt"):
        assert ask("PUT", f"{api}/artifacts/{place}", MARKER).status == 403
        assert ask("POST", f"{api}/mpu/create/{place}", {"path": place, "num_parts": 1}).status == 403
        assert (
            ask("GET", f"{api}/presigned/{place}").status == 403
            and ask("GET", f"{api}/artifacts/{place}").status == 403
        )
    # What is asked for is looked for there, and nowhere else.
    for path in ("secret.txt", "../../secret.txt", "..%2f..%2fsecret.txt", "%2e%2e/%2e%2e/secret.txt"):
        answer = ask("GET", f"/get-artifact?run_uuid={run_id}&path={path}")
        assert answer.status >= 400 and SECRET not in answer.text, f"{path}: {answer.text[:300]}"
        assert path != "secret.txt" or own in answer.text, answer.text[:300]
    for path in ("", "&path=..", "&path=../..", "&path=..%2f..%2f..", f"&path=/{root}"):
        answer = ask("GET", f"/api/2.0/mlflow/artifacts/list?run_id={run_id}{path}")
        assert not json.loads(answer.text).get("files"), f"{path}: {answer.text[:200]}"
    stored = [name.partition(root)[2] for name in target.inside(STORED, "secret.txt").split() if root in name]
    assert stored == ["/secret.txt"]
    assert target.mlflow("GET", f"{api}/artifacts/{root}/secret.txt", target.admin).text == SECRET


def test_nobodys_code_runs(target: Target) -> None:
    """Jobs and scorers with code, which the server would run, are refused, also to the admin."""
    experiment = json.loads(target.mlflow("GET", f"{EXPERIMENT}?experiment_name=Default", target.admin).text)
    scorer = {"name": "code", "call_source": "return True", "call_signature": "(outputs)", "original_func_name": "code"}
    body = {
        "experiment_id": experiment["experiment"]["experiment_id"],
        "name": "code",
        "serialized_scorer": json.dumps(scorer),
    }
    answer = target.mlflow("POST", "/api/3.0/mlflow/scorers/register", target.admin, body=body)
    assert answer.status == 400 and "scorer" in answer.text, answer.text[:300]
    body = {"job_name": "run_online_trace_scorer", "params": {}}
    answer = target.mlflow("POST", "/ajax-api/3.0/jobs/", target.admin, body=body)
    assert answer.status >= 400 and "not enabled" in answer.text, f"{answer.status} {answer.text[:300]}"


WEAK_PARTS = """
import importlib.util, json, pathlib, re
found = {"mlserver": importlib.util.find_spec("mlserver") is not None, "users": set()}
found["tmp"] = [line.split()[2] for line in open("/proc/mounts") if line.split()[1] == "/tmp"]
for process in pathlib.Path("/proc").glob("[0-9]*"):
    found["users"].add(re.search(r"(?m)^Uid:\\s+(.*)$", (process / "status").read_text())[1])
print(json.dumps({name: sorted(value) if isinstance(value, set) else value for name, value in found.items()}))
"""


def test_weak_parts_of_mlflow_are_not_there(target: Target) -> None:
    """CVE-2026-4137, -53995, -0596: a /tmp of one user's own, no file store, nothing that serves models."""
    found = json.loads(target.inside(WEAK_PARTS))
    assert found["tmp"] == ["tmpfs"] and not found["mlserver"], found
    assert len(found["users"]) == 1 and len(set(found["users"][0].split())) == 1, found
    told = json.loads(target.mlflow("GET", "/api/3.0/mlflow/server-info", target.admin).text)
    assert told["store_type"] == "SqlStore", told


@pytest.mark.full
@pytest.mark.parametrize(("auth", "store"), [("mlflow", "azure"), ("oidc", "s3")])
def test_nor_in_other_stores(tmp_path: Path, auth: str, store: str) -> None:
    """Of a store elsewhere the same, and with single sign-on, where programs come with a token."""
    mode = {"auth": auth, "reverse_proxy": "nginx", "backend": "sqlite", "artifact_store": store}
    with started(tmp_path, mode) as it:
        settle(it)
        login = STRANGER
        if auth == "oidc":
            token = it.stack.make("token", f"NAME={STRANGER[0]}")
            login = (STRANGER[0], re.search(r"mst_\w+", token)[0])
        assert it.mlflow("GET", SEARCH, login).status == 200
        for kind in KINDS:
            takes_nothing(it, login, kind)
        # What the admin's own version names is there, by the same way: the request is one that could succeed.
        root = it.prey["artifact_path"].rsplit("/", 1)[0]
        body = {"name": it.prey["registered"], "source": f"mlflow-artifacts:/{root}", "run_id": it.prey["run_id"]}
        made = it.mlflow("POST", "/api/2.0/mlflow/model-versions/create", it.admin, body=body)
        assert made.status == 200, made.text[:300]
        version = json.loads(made.text)["model_version"]["version"]
        query = f"name={quote(it.prey['registered'])}&version={version}&path=secret.txt"
        assert SECRET in it.mlflow("GET", f"/model-versions/get-artifact?{query}", it.admin).text
