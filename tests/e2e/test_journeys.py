"""The journeys of docs/journeys, each command as printed there and in the order of the page, and everything that was
ever logged still loads at the end."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import history
import pytest
from journeys import Shell
from needs import engine
from outside import managed_postgres, s3
from stacks import PREFIX, ROOT, Stack, free_port, removed, run, stack
from test_old_clients import WORDS, installed

pytestmark = pytest.mark.docker

PAGES = ROOT / "docs" / "journeys"
BACK = "## The way back"
FILE_STORE = {"MLFLOW_ALLOW_FILE_STORE": "true"}
INVENTORY = Path(__file__).with_name("inventory.py").read_text()


def environment() -> dict[str, str]:
    """Return the environment of a user who has Copier and MLflow. Root is told to be somebody else: the containers'
    PostgreSQL may be a stand-in whose files belong to that user."""
    foreign = ("MAKE", "MFLAGS", "COMPOSE_", "MLFLOW_", "AWS_", "AZURE_", "GOOGLE_", "PG")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    path = f"{Path(sys.executable).parent}:{env['PATH']}"
    return env | {"PATH": path} | ({"SUDO_UID": "999", "SUDO_GID": "999"} if os.getuid() == 0 else {})


def template(name: str, port: int) -> dict[str, str]:
    """Return what stands for the template's address: this checkout, with a name and a port of the tests' own."""
    data = f"--data project_name={PREFIX}-j-{name} --data http_port={port}"
    return {
        "uvx copier copy --defaults": "copier copy --quiet --vcs-ref=HEAD --defaults",
        f"gh:org/mlflow-stack {name}": f"{data} {ROOT} {name}",
        f"{name} is ready": f"{PREFIX}-j-{name} is ready",
        f"{name}-artifacts": f"{PREFIX}-j-{name}-artifacts",
    }


def wait_for_server(port: int) -> None:
    """Return when it answers."""
    until = time.monotonic() + 120
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return
        assert time.monotonic() < until
        time.sleep(0.3)


@contextlib.contextmanager
def laptop(folder: Path, env: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Run `mlflow server` in a folder; give back the environment of a client of it."""
    port = free_port()
    server = subprocess.Popen(
        ["mlflow", "server", "--port", str(port), "--workers", "1"],
        cwd=folder, env=dict(env), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for_server(port)
        yield dict(env) | {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def python(script: str, *arguments: str, folder: Path, env: Mapping[str, str]) -> str:
    """Run a Python program of the user's in a folder; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=folder, env=dict(env), text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def contents(one: Stack) -> dict[str, Any]:
    """Return everything that a client finds in a stack; it saw nothing but what the stack publishes."""
    found = json.loads(one.client(INVENTORY).splitlines()[-1])
    assert one.fence_log() == []
    return found


@contextlib.contextmanager
def gone_afterwards(*stacks: Stack) -> Iterator[None]:
    """Remove the stacks that there are, and their images."""
    try:
        yield
    finally:
        for one in stacks:
            if (one.folder / "compose.yaml").exists():
                name = one.name
                removed(one)
                images = run("docker", "images", "--quiet", "--filter", f"reference={name}-*").stdout.split()
                run("docker", "rmi", "--force", *images)


@dataclass
class Team:
    """The team's stack, in which somebody's laptop has moved, and what was on that laptop."""

    stack: Stack
    port: int
    home: Path  # the folder on the laptop
    env: dict[str, str]
    before: dict[str, Any]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """Fill a laptop's folder by a server and by scripts, and go the first journey."""
    engine()
    folder, env = tmp_path_factory.mktemp("journeys"), environment()
    home = folder / "Users" / "ann" / "fraud"
    home.mkdir(parents=True)
    with laptop(home, env) as client:
        python(history.WRITE, "by script", "[]", folder=home, env=env)
        python(history.WRITE, "by server", "[]", folder=home, env=client)
        before = json.loads(python(INVENTORY, folder=home, env=client).splitlines()[-1])
    assert before["by script"]["runs"] and before["by server"]["traces"] and len(before["registry"]) == 2
    shutil.move(home, folder / "laptop")

    one = Team(Stack(folder / "team"), free_port(), home, env, before)
    shell = Shell(folder, env, instead_of_team(one))
    with gone_afterwards(one.stack):
        shell.play(PAGES / "laptop-to-team.md", end=BACK)
        yield one
        shell.close()


def instead_of_team(team: Team) -> dict[str, str]:
    """Return what stands for what the pages print of the team's stack."""
    return template("team", team.port) | {
        "/Users/ann/fraud": str(team.home),
        "/srv/mlflow": str(team.stack.folder.parent),
        "localhost:8080": f"localhost:{team.port}",
    }


def test_laptop_to_team(team: Team) -> None:
    """Every run, model, trace and file that was in SQLite and on a disk is in PostgreSQL and in the object store."""
    assert contents(team.stack) == team.before


def test_team_to_cloud(team: Team) -> None:
    """The same from the team's stack to a database and a bucket of somebody else's, and back."""
    cloud, port, keys = Stack(team.stack.folder.parent / "cloud"), free_port(), team.stack.folder.parent / "keys"
    with contextlib.ExitStack() as outside:
        database, store = outside.enter_context(managed_postgres()), outside.enter_context(s3())
        outside.enter_context(gone_afterwards(cloud))
        keys.mkdir()
        for name, text in (database.secrets | store.secrets).items():
            (keys / name).write_text(text)
        instead = instead_of_team(team) | template("cloud", port) | {
            "bucket=ann-mlflow -d http_port=8081": f"bucket={store.answers['bucket']}",
            "s3://ann-mlflow": f"s3://{store.answers['bucket']} at {store.settings['MLFLOW_S3_ENDPOINT_URL']}",
            "localhost:8081": f"localhost:{port}",
            # On Amazon nobody says where S3 is.
            "DB_HOST=db.example.com": "\n".join(f"{n}={v}" for n, v in (database.settings | store.settings).items()),
            "DB_PORT=5432\nDB_NAME=mlflow\nDB_USER=mlflow\n": "",
        }  # fmt: skip
        shell = Shell(team.stack.folder.parent, team.env, instead)
        shell.play(PAGES / "team-to-cloud.md", end=BACK)
        assert contents(cloud) == team.before
        shell.play(PAGES / "team-to-cloud.md", start=BACK)
        shell.close()
        assert contents(team.stack) == team.before


@contextlib.contextmanager
def way_back(page: str, home: Path, env: Mapping[str, str], printed: str) -> Iterator[dict[str, str]]:
    """Start the old server in its folder as a page prints it; give back the environment of a client of it.

    Where the command `printed` stands, it runs in the background and at a port of the tests' own.
    """
    port, pid = free_port(), home / "server.pid"
    there = f"setsid env {printed} --port {port} --workers 1 >server.log 2>&1 & echo $! >server.pid"
    user = f"/{home.relative_to(home.parents[2])}"
    shell = Shell(home, env, {user: str(home), printed: there})
    try:
        shell.play(PAGES / page, start=BACK)
        wait_for_server(port)
        yield dict(env) | {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    finally:
        shell.close()
        with contextlib.suppress(ProcessLookupError):  # it ended by itself: then the test has failed
            os.killpg(int(pid.read_text()), signal.SIGTERM)


def test_back_to_the_laptop(team: Team) -> None:
    """The folder that was moved from still serves all of it."""
    shutil.move(team.stack.folder.parent / "laptop", team.home)
    with way_back("laptop-to-team.md", team.home, team.env, "mlflow server") as there:
        assert json.loads(python(INVENTORY, folder=team.home, env=there).splitlines()[-1]) == team.before


def test_a_stack_of_ones_own(team: Team, tmp_path: Path) -> None:
    """A stack with SQLite and local artifacts moves in as it is, over what is there; its server then rests."""
    with stack(tmp_path, "j-solo", {}) as solo:
        solo.up()
        solo.client(history.WRITE, "solo", "[]")
        before = contents(solo)
        team.stack.make("artifacts-move", f"FROM={solo.folder}")
        # Refused: then both servers run as before.
        assert "REPLACE=1" in team.stack.make("migrate", f"FROM={solo.folder}", fails=True)
        assert "ready" in solo.make("status") and "ready" in team.stack.make("status")
        said = team.stack.make("migrate", f"FROM={solo.folder}", "REPLACE=1")
        assert f"the way back: make -C {solo.folder} up" in said
        assert contents(team.stack) == before
        assert solo.compose("ps", "--status", "running", "--quiet", "mlflow") == ""
        solo.make("up")
        assert contents(solo) == before
        assert "is this very stack" in team.stack.make("migrate", "FROM=.", fails=True)


OLD = (
    WORDS
    + """
@mlflow.trace
def ask(text):
    return "answer to " + text
mlflow.set_experiment("by traces")
ask("why?")
with mlflow.start_run(experiment_id="0", run_name="in Default"):
    mlflow.log_metric("loss", float("nan"))
"""
)


OR_SQLITE = "## Or: a stack with SQLite"


def test_mlruns_to_a_stack(tmp_path: Path) -> None:
    """What MLflow 2.22 wrote into ./mlruns is in PostgreSQL, under experiments with new ids, and in SQLite."""
    engine()
    env, home = environment(), tmp_path / "Users" / "bob" / "churn"
    home.mkdir(parents=True)
    old = installed("mlflow-2.22")
    done = run(old, "-c", OLD, "write=old", "write=other", cwd=home)
    assert done.returncode == 0, done.stderr
    before = python(INVENTORY, folder=home, env=env | {"MLFLOW_TRACKING_URI": f"file://{home}/mlruns", **FILE_STORE})
    shutil.move(home, tmp_path / "old")
    tracking, port = Stack(tmp_path / "tracking"), free_port()
    instead = template("tracking", port) | {
        "/Users/bob/churn": str(home),
        "/srv/mlflow": str(tmp_path),
        "localhost:5000": f"localhost:{port}",
    }
    shell = Shell(tmp_path, env, instead)
    with gone_afterwards(tracking):
        shell.play(PAGES / "mlruns.md", end=OR_SQLITE)
        assert contents(tracking) == json.loads(before.splitlines()[-1])
    shell.close()
    solo = Stack(tmp_path / "solo")
    instead |= template("solo", port)
    del instead["localhost:5000"]
    shell = Shell(tmp_path, env, instead | {"localhost:5000": f"localhost:{port}"})
    with gone_afterwards(solo):
        shell.play(PAGES / "mlruns.md", start=OR_SQLITE, end=BACK)
        assert contents(solo) == json.loads(before.splitlines()[-1])
        # With rows there it is refused, and the server runs on; what is replaced comes back.
        assert "REPLACE=1" in solo.make("migrate", "FROM=../old/mlruns", fails=True)
        assert "ready" in solo.make("status")
        said = solo.make("migrate", "FROM=../old/mlruns", "REPLACE=1")
        (backup,) = (solo.folder / "backups").iterdir()
        assert f"FROM=backups/{backup.name} REPLACE=1 brings it back" in said
        solo.make("migrate", f"FROM=backups/{backup.name}", "REPLACE=1")
        assert contents(solo) == json.loads(before.splitlines()[-1])
    shell.close()
    shutil.move(tmp_path / "old", home)
    serve = "MLFLOW_ALLOW_FILE_STORE=true mlflow server --backend-store-uri ./mlruns"
    with way_back("mlruns.md", home, env, serve) as there:
        assert python(INVENTORY, folder=home, env=there).splitlines()[-1] == before.splitlines()[-1]
    read = run(old, "-c", WORDS, "read=old", "read=other", cwd=home)
    assert read.returncode == 0, read.stderr
