"""Rendered stacks really run: `make up`, `make check` with the stock client from outside, `make down`."""

import json
import os
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import copier
import pytest
from needs import engine

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "mlflow-stack-test"  # every container, volume and network that this file makes starts so

STACKS = {
    "flagship": {"purpose": "team"},
    "laptop-in-docker": {},
    "everything-else": {
        "backend": "postgres",
        "artifact_store": "seaweedfs",
        "artifact_access": "direct",
        "reverse_proxy": "nginx",
        "url_prefix": "/mlflow",
        "domain": "mlflow.example.com",
        "auth": "mlflow",
    },
}


def run(*command: str, cwd: Path, **more: object) -> subprocess.CompletedProcess[str]:
    """Run a command in `cwd` and return what it did; nothing of make's or Compose's environment leaks in."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "COMPOSE_", "MLFLOW_"))}
    return subprocess.run(command, cwd=cwd, env=env, text=True, capture_output=True, timeout=900, **more)


def make(stack: Path, *targets: str) -> str:
    """Run make targets that must succeed; return their output."""
    done = run("make", "--no-print-directory", *targets, cwd=stack)
    assert done.returncode == 0, f"make {' '.join(targets)}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def leftovers(project: str, *kinds: str) -> list[str]:
    """Return the containers, networks and volumes that carry the project's label."""
    found = []
    for kind in kinds:
        options = ["--all"] if kind == "container" else []
        listed = run(
            "docker", kind, "ls", "--quiet", *options,
            "--filter", f"label=com.docker.compose.project={project}", cwd=ROOT,
        )  # fmt: skip
        found += [f"{kind} {name}" for name in listed.stdout.split()]
    return found


@pytest.fixture(scope="module", params=STACKS, ids=str)
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Render one stack, start it as its owner would, and remove every trace of it afterwards."""
    engine()
    name = f"{PREFIX}-{request.param}"
    folder = tmp_path_factory.mktemp(request.param) / name
    answers = {"project_name": name, "http_port": free_port(), **STACKS[request.param]}
    copier.run_copy(str(ROOT), folder, data=answers, defaults=True, quiet=True, vcs_ref="HEAD")
    settings = [f"STORE_PORT={free_port()}", f"MLFLOW_IMAGE={PREFIX}-image"]
    if os.getuid() == 0:
        # Debian's own postgres user: a stand-in image may hold a data folder of that user.
        settings += ["STACK_UID=999", "STACK_GID=999"]
    (folder / ".env").write_text("\n".join(settings) + "\n")
    try:
        make(folder, "up")
        yield folder
    finally:
        run("docker", "compose", "--profile", "*", "down", "--volumes", "--remove-orphans", cwd=folder)
        assert leftovers(name, "container", "network", "volume") == []
        shutil.rmtree(folder)


def setting(stack: Path, name: str) -> str:
    """Return a value of the stack's answers."""
    for line in (stack / ".copier-answers.yml").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return line.split(":", 1)[1].strip().strip("'\"")
    raise KeyError(name)


def base_url(stack: Path) -> str:
    """Return the stack's address, by number: the tests' machine need not know its name."""
    prefix = setting(stack, "url_prefix")
    return f"http://127.0.0.1:{setting(stack, 'http_port')}{prefix}"


def status(url: str, host: str = "", login: str = "") -> int:
    """Return the HTTP status of a GET, with another Host header or a login (user:password) if given."""
    request = urllib.request.Request(url)
    if host:
        request.add_header("Host", host)
    if login:
        request.add_header("Authorization", "Basic " + b64encode(login.encode()).decode())
    try:
        return urllib.request.urlopen(request, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code


def test_check_passes_as_printed_in_the_readme(stack: Path) -> None:
    assert re.search(r"^OK \(", make(stack, "check"), re.MULTILINE)


def test_up_twice_changes_nothing(stack: Path) -> None:
    before = run("docker", "compose", "ps", "--quiet", cwd=stack).stdout
    make(stack, "up")
    assert run("docker", "compose", "ps", "--quiet", cwd=stack).stdout == before
    assert len(before.split()) >= 1


READ_EXPERIMENTS = """
import base64, os, urllib.request
request = urllib.request.Request(
    "http://localhost:5000/api/2.0/mlflow/experiments/search?max_results=100&view_type=ALL")
if os.path.exists("/run/secrets/admin_password"):
    login = "admin:" + open("/run/secrets/admin_password").read().strip()
    request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
print(urllib.request.urlopen(request).read().decode())
"""


def experiments(stack: Path) -> list[str]:
    """Return the names of all experiments, deleted ones too."""
    done = run("docker", "compose", "exec", "-T", "mlflow", "python", "-c", READ_EXPERIMENTS, cwd=stack)
    assert done.returncode == 0, done.stderr
    return sorted(e["name"] for e in json.loads(done.stdout)["experiments"])


def test_data_survives_down_and_up(stack: Path) -> None:
    before = experiments(stack)
    assert any(name != "Default" for name in before), "the check's own, deleted, experiment is in the database"
    make(stack, "down")
    assert leftovers(setting(stack, "project_name"), "container", "network") == []
    make(stack, "up")
    assert experiments(stack) == before


def test_restart(stack: Path) -> None:
    make(stack, "restart")
    assert "ready" in make(stack, "status")
    assert re.search(r"^OK \(", make(stack, "check"), re.MULTILINE)


def test_who_gets_in(stack: Path) -> None:
    api = base_url(stack) + "/api/2.0/mlflow/experiments/search?max_results=1"
    auth = setting(stack, "auth")
    host = f"{setting(stack, 'domain')}:{setting(stack, 'http_port')}"
    login = ""
    if auth != "none":
        password = (stack / "secrets" / "admin_password").read_text().strip()
        login = f"admin:{password}"
        assert status(api, host) == 401
        assert status(api, host, "admin:wrong-password") == 401
    assert status(api, host, login) == 200
    assert status(api, "evil.example.net", login) == 403, "an unknown host name is refused"


def test_containers_are_locked_down(stack: Path) -> None:
    ids = run("docker", "compose", "ps", "--all", "--quiet", cwd=stack).stdout.split()
    secrets = {
        word
        for path in (stack / "secrets").iterdir()
        if path.name not in ("passwd", "db_ca.pem")
        for word in path.read_text().replace('"', " ").split()
        if len(word) >= 20 and not word.startswith(("aws_", setting(stack, "project_name")))
    }
    assert secrets
    for one in json.loads(run("docker", "inspect", *ids, cwd=stack).stdout):
        name = one["Name"]
        assert one["Config"]["User"].split(":")[0].isdigit() and one["Config"]["User"] != "0:0", name
        assert one["HostConfig"]["ReadonlyRootfs"], name
        assert one["HostConfig"]["CapDrop"] == ["ALL"], name
        assert one["HostConfig"]["Memory"] > 0, name
        for bindings in (one["HostConfig"]["PortBindings"] or {}).values():
            assert all(b["HostIp"] == "127.0.0.1" for b in bindings), name
        text = json.dumps(one) + run("docker", "logs", one["Id"], cwd=stack).stdout
        assert not [s for s in secrets if s in text], f"{name}: a secret is in its description or its log"


def test_the_database_role_is_plain(stack: Path) -> None:
    if not (stack / "postgres").exists():
        assert not run("docker", "compose", "ps", "--quiet", "postgres", cwd=stack).stdout
        return
    answer = run(
        "docker", "compose", "exec", "-T", "postgres", "psql", "-U", "postgres", "-Atc",
        "select rolsuper, rolcreatedb, rolcreaterole, pg_get_userbyid(datdba) from pg_roles, pg_database"
        " where rolname = 'mlflow' and datname = 'mlflow'",
        cwd=stack,
    )  # fmt: skip
    assert answer.stdout.strip() == "f|f|f|mlflow", answer.stderr


def test_a_missing_database_is_named(stack: Path) -> None:
    """Readiness goes through to the database: without it the server is alive and not ready."""
    if not (stack / "postgres").exists():
        assert setting(stack, "backend") == "sqlite"
        return
    ready = ("docker", "compose", "exec", "-T", "mlflow", "stackops", "ready")
    alive = (
        "docker", "compose", "exec", "-T", "mlflow", "python", "-c",
        "import urllib.request as u; print(u.urlopen('http://localhost:5000/health').status)",
    )  # fmt: skip
    assert run(*ready, cwd=stack).returncode == 0
    run("docker", "compose", "stop", "postgres", cwd=stack)
    try:
        assert run(*ready, cwd=stack).returncode == 1
        assert run(*alive, cwd=stack).stdout.strip() == "200"
    finally:
        run("docker", "compose", "up", "--detach", "--wait", cwd=stack)
    assert run(*ready, cwd=stack).returncode == 0


def test_a_busy_port_is_one_sentence_and_loses_nothing(stack: Path) -> None:
    """A stranger holds the port: `make up` says so and ends; with the port free again, all is well."""
    make(stack, "down")
    port = int(setting(stack, "http_port"))
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", port))
        stranger.listen()
        done = run("make", "--no-print-directory", "up", cwd=stack)
        said = [line for line in done.stderr.splitlines() if line.startswith("up: error:")]
        assert done.returncode != 0
        assert len(said) == 1 and "is in use" in said[0] and "HTTP_PORT" in said[0], done.stderr
    make(stack, "up")
    make(stack, "check")
