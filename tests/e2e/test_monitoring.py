"""Watching: with load from the stock client, every target answers, every panel of every dashboard has data, every alarm
can be evaluated; and nobody outside sees any of it.

Grafana itself is not run: no image of it can be had here. What it would ask Prometheus for is asked in its place.
"""

import base64
import http.client
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from outside import managed_postgres
from stacks import Stack, free_port, run, stack

pytestmark = pytest.mark.docker

TEAM = {"purpose": "team", "backups": True, "monitoring": True, "tls": "self-signed"}
LOAD = """
import sys, tempfile, pathlib
import mlflow
mlflow.set_experiment("watched")
for number in range(int(sys.argv[1])):
    with mlflow.start_run() as run, tempfile.TemporaryDirectory() as folder:
        mlflow.log_params({"number": number})
        mlflow.log_metric("loss", 1 / (number + 1))
        pathlib.Path(folder, "file.bin").write_bytes(b"x" * 300_000)
        mlflow.log_artifact(f"{folder}/file.bin")
mlflow.search_runs(search_all_experiments=True)
with tempfile.TemporaryDirectory() as folder:
    mlflow.artifacts.download_artifacts(run_id=run.info.run_id, dst_path=folder)
try:
    mlflow.get_run("0" * 32)
except mlflow.MlflowException as error:
    print(error.error_code)
"""
# In Grafana's place: it says what it was asked for.
ECHO = """
import http.server
class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = f"{self.path} {self.headers['Host']} {self.headers['Authorization']}".encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text)
http.server.HTTPServer(("", 3000), Echo).serve_forever()
"""


def inside(one: Stack, url: str) -> str:
    """Ask from inside the stack, in the container that shows the figures."""
    program = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode())"
    return one.compose("exec", "-T", "metrics", "python", "-c", program, url)


def figures(one: Stack) -> str:
    """Return what `stackops metrics` shows."""
    return inside(one, "http://127.0.0.1:9464/metrics")


MANY = """
import json, sys, urllib.parse, urllib.request
answers = {}
for query in json.load(sys.stdin):
    url = "http://prometheus:9090/api/v1/query?" + urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(url, timeout=20) as answer:
        answers[query] = json.load(answer)["data"]["result"]
print(json.dumps(answers))
"""


def ask_all(one: Stack, queries: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Return what Prometheus answers to each query; one that it does not understand fails."""
    said = one.compose("exec", "-T", "metrics", "python", "-c", MANY, input=json.dumps(sorted(set(queries))))
    return json.loads(said)


def ask(one: Stack, query: str) -> list[dict[str, Any]]:
    """Return what Prometheus answers to a query."""
    return ask_all(one, [query])[query]


def until(seconds: float, question: Callable[[], Any]) -> Any:
    """Ask again and again until the answer is true; return the last answer."""
    end = time.monotonic() + seconds
    while not (answer := question()) and time.monotonic() < end:
        time.sleep(1)
    return answer


def panels(one: Stack) -> Iterator[tuple[str, str]]:
    """Yield each panel's name and query, as Grafana would send it."""
    for path in sorted((one.folder / "monitoring/grafana/dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", target["expr"].replace("$__rate_interval", "5m")


def empty_panels(one: Stack) -> list[str]:
    """Return the panels whose query gives nothing, or no number."""
    asked = list(panels(one))
    answers = ask_all(one, (query for _, query in asked))
    return [name for name, query in asked if all(sample["value"][1] == "NaN" for sample in answers[query])]


def empty_after_load(one: Stack) -> list[str]:
    """The same when the stack has just been used, and Prometheus has looked since."""
    one.client(LOAD, "2")
    time.sleep(16)
    return empty_panels(one)


def outside(one: Stack, path: str, login: str = "") -> http.client.HTTPResponse:
    """Return the answer to a GET at the published address, with or without the admin's password."""
    address = next(iter(one.doors.values()))
    kind = http.client.HTTPSConnection if one.scheme == "https" else http.client.HTTPConnection
    more = {}
    if one.scheme == "https":
        import ssl

        more = {"context": ssl._create_unverified_context()}  # the certificate is another test's
    connection = kind(*address.split(":"), timeout=20, **more)
    host = next(iter(one.doors))
    headers = {"Host": host}
    if login:
        headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        answer.text = answer.read().decode(errors="replace")
        return answer
    finally:
        connection.close()


def rules(one: Stack) -> dict[str, dict[str, Any]]:
    """Return Prometheus' alarms, by name."""
    groups = json.loads(inside(one, "http://prometheus:9090/api/v1/rules"))["data"]["groups"]
    return {rule["name"]: rule for group in groups for rule in group["rules"]}


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack of a team, which runs and has been used."""
    with stack(tmp_path_factory.mktemp("watched"), "watched", TEAM, {"MLFLOW_WORKERS": "2"}) as one:
        one.without_grafana()
        one.up()
        one.make("backup")
        for _ in range(3):  # counts grow while Prometheus looks
            assert "RESOURCE_DOES_NOT_EXIST" in one.client(LOAD, "5")
            time.sleep(10)
        yield one


def test_every_target_is_up_and_every_panel_has_data(team: Stack) -> None:
    """Grafana would show figures on every panel of every dashboard."""
    up = {sample["metric"]["job"]: sample["value"][1] for sample in ask(team, "up")}
    assert up == {"metrics": "1", "object-store": "1", "prometheus": "1"}
    names = {name.split(":")[0] for name, _ in panels(team)}
    assert names == {"backups", "certificate", "nginx", "postgres", "server", "store"}
    assert until(120, lambda: not empty_after_load(team)), empty_panels(team)


def test_the_figures_are_right(team: Stack) -> None:
    """Requests are counted under their routes, by all workers; the parts say what is so."""

    def value(query: str) -> float:
        (one,) = ask(team, query)
        return float(one["value"][1])

    assert value('sum(stack_requests_total{route="/api/2.0/mlflow/runs/create", status="200"})') >= 15
    uploads = 'stack_requests_total{route=~".*/mlflow-artifacts/artifacts/.*", method="PUT", status="200"}'
    assert value(f"sum({uploads})") >= 15
    assert value('sum(stack_request_bytes_total{direction="in"})') > 15 * 300_000
    assert value('sum(stack_requests_total{route="/api/2.0/mlflow/runs/get", status="404"})') >= 1
    assert value("stack_workers") == 2 == len(ask(team, 'process_resident_memory_bytes{job="metrics"}'))
    assert value("stack_ready") == value("stack_backup_ok") == value("stack_database_up") == 1
    assert value("stack_backup_due_seconds") > time.time()
    assert value("stack_certificate_ends_seconds") > time.time() + 86400
    assert value("stack_database_max_connections") == 100 and value("sum(stack_database_connections)") >= 2
    assert value("stack_database_statements_total") > 100
    assert ask(team, "stack_figures_failed == 1") == []
    statements = {sample["metric"]["statement"] for sample in ask(team, "stack_database_slow_statements_total")}
    assert statements and not any("stackops metrics" in text for text in statements)
    routes = {sample["metric"]["route"] for sample in ask(team, "sum by (route) (stack_requests_total)")}
    assert len(routes) < 60 and not any(re.search(r"[0-9a-f]{32}", route) for route in routes)


def test_every_alarm_can_be_evaluated_and_none_is_on(team: Stack) -> None:
    """Prometheus has the rules, finds no fault in them, and this stack is well."""
    found = until(60, lambda: all(rule["health"] == "ok" for rule in rules(team).values()) and rules(team))
    assert found and set(found) == {
        "NotReady", "PartDown", "ManyErrors", "Slow", "Restarts", "DiskNearlyFull", "DatabaseConnections",
        "LongTransaction", "CertificateEnds", "BackupFailed", "BackupOverdue", "ServerMissing",
    }  # fmt: skip
    # Of the machine's disk this test knows nothing.
    assert {name for name, rule in found.items() if rule["state"] != "inactive"} <= {"DiskNearlyFull"}
    said = team.make("monitoring-check")
    assert f"{len(found)} rules found" in said and "SUCCESS" in said and "FAILED" not in said
    team.make("alarms")


def test_nobody_outside_sees_it(team: Stack) -> None:
    """Neither figures nor Prometheus are behind any door; Grafana is, behind the stack's login."""
    login = f"admin:{team.secret('admin_password')}"
    for path in ("/metrics", "/metrics/", "/status", "/api/v1/query?query=up", "/prometheus/", "/stackops/metrics"):
        assert outside(team, path).status in (401, 404), path
        answer = outside(team, path, login)
        assert answer.status == 404 and "stack_" not in answer.text, path
    published = run("docker", "compose", "ps", "--format", "{{.Service}} {{.Ports}}", cwd=team.folder).stdout
    assert {line.split()[0] for line in published.splitlines() if "->" in line} == {"nginx"}
    assert outside(team, "/grafana/").status == 401
    assert outside(team, "/grafana/", login).status == 502  # it is not there, and everything else is
    assert outside(team, "/", login).status == 200


def test_what_stops_is_seen(team: Stack) -> None:
    """Without its database the server is not ready, and the figures say so; a dead worker is followed by another."""

    def youngest() -> float:
        return float(ask(team, "stack_worker_started_seconds")[0]["value"][1])

    def replaced() -> bool:
        text = figures(team)
        return bool(re.search(r"(?m)^stack_workers 2", text)) and f'worker="{number}"' not in text

    started = youngest()
    number = re.search(r'(?m)^process_start_time_seconds\{server="\w+",worker="(\d+)"\}', figures(team))[1]
    team.compose("exec", "-T", "mlflow", "python", "-c", f"import os; os.kill({number}, 9)")
    assert until(90, replaced), figures(team)
    assert until(60, lambda: youngest() > started)
    team.compose("stop", "postgres")
    try:
        assert until(60, lambda: re.search(r"(?m)^stack_ready 0", figures(team)))
        assert re.search(r"(?m)^stack_database_up 0", figures(team))
        assert until(60, lambda: rules(team)["NotReady"]["state"] in ("pending", "firing"))
    finally:
        team.make("up")
    assert until(60, lambda: re.search(r"(?m)^stack_ready 1", figures(team)))


def test_grafanas_door(team: Stack) -> None:
    """What is at Grafana's place gets its paths as they are, and no password of the stack."""
    image = team.settings()["MLFLOW_IMAGE"]
    echo = {"profiles": [], "image": image, "entrypoint": ["python", "-c", ECHO], "healthcheck": {"disable": True}}
    team.override({"services": {"grafana": echo}})
    team.compose("up", "--detach", "--no-deps", "grafana")
    login = f"admin:{team.secret('admin_password')}"
    assert until(30, lambda: outside(team, "/grafana/", login).status == 200)
    host = next(iter(team.doors))
    assert outside(team, "/grafana/api/health?x=1", login).text == f"/grafana/api/health?x=1 {host} None"
    assert outside(team, "/grafana/api/health").status == 401
    team.compose("rm", "--force", "--stop", "grafana")
    team.without_grafana()


SMALL = {
    "laptop": {"monitoring": True},
    "caddy": {
        "monitoring": True,
        "reverse_proxy": "caddy",
        "auth": "mlflow",
        "artifact_store": "minio",
        "url_prefix": "/x",
    },
}


@pytest.mark.parametrize("name", SMALL)
def test_a_small_stack(name: str, tmp_path: Path) -> None:
    """SQLite: the same with fewer parts. Without a proxy the server's port shows no figures either."""
    with stack(tmp_path, f"watched-{name}", SMALL[name], {"GRAFANA_PORT": str(free_port())}) as one:
        one.without_grafana()
        one.up()
        one.make("backup")
        assert until(120, lambda: not empty_after_load(one)), empty_panels(one)
        jobs = {sample["metric"]["job"] for sample in ask(one, "up == 1")}
        assert jobs == {"metrics", "prometheus"} | ({"caddy", "object-store"} if name == "caddy" else set())
        login = f"admin:{one.secret('admin_password')}" if name == "caddy" else ""
        for path in ("/metrics", "/x/metrics", "/x/metrics/"):
            answer = outside(one, path, login)
            assert answer.status == 404 or "stack_requests" not in answer.text and "caddy_" not in answer.text, path
        assert ask(one, "stack_figures_failed == 1") == []
        said = one.make("monitoring-check")
        assert "SUCCESS" in said and "FAILED" not in said
        if name == "caddy":
            assert outside(one, "/x/grafana/").status == 502
            assert outside(one, "/x/", login).status == 200
            assert ask(one, "minio_cluster_usage_object_total")[0]["value"][1] != "0"
            assert outside(one, "/minio/v2/metrics/cluster", login).status == 404


def test_a_managed_database(tmp_path: Path) -> None:
    """The stack's role watches it, over TLS. Its statements are not counted there; everything else is."""
    answers = {"monitoring": True, "backend": "managed", "artifact_store": "local", "reverse_proxy": "none"}
    with (
        managed_postgres() as database,
        stack(tmp_path, "watched-managed", answers, {"GRAFANA_PORT": str(free_port())}) as one,
    ):
        database.fill(one)
        one.without_grafana()
        one.up()
        titles = ("Statements", "Mean time of a statement", "Costly statements", "Slow statements")
        uncounted = {f"postgres: {title}" for title in titles}

        def missing() -> set[str]:
            return {name for name in empty_after_load(one) if not name.startswith("backups:")}  # there are none

        assert until(120, lambda: missing() == uncounted), missing()
        assert ask(one, "stack_database_up")[0]["value"][1] == "1"
        assert ask(one, "stack_figures_failed == 1") == []
        assert {"DatabaseConnections", "LongTransaction"} <= rules(one).keys()
        said = one.make("monitoring-check")
        assert "SUCCESS" in said and "FAILED" not in said
